// Builds the page into the Python package. File names are fixed and nothing depends on time or place, so that the same
// sources give the same bytes; the server sends them with their hashes as ETags.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { defineConfig, type Plugin } from "vite";

const SOURCES = ["index.html", "package-lock.json", "tsconfig.json", "vite.config.ts", "src"];

/** A hash over all sources: a test compares it with what lies in the package. */
function sourcesHash(): string {
  const files = SOURCES.flatMap((name) =>
    name.includes(".") ? [name] : readdirSync(name).sort().map((file) => `${name}/${file}`),
  );
  const hash = createHash("sha256");
  for (const file of files) hash.update(`${file}\0`).update(readFileSync(join(import.meta.dirname, file))).update("\0");
  return hash.digest("hex");
}

const packageFiles: Plugin = {
  name: "package-files",
  generateBundle() {
    this.emitFile({ type: "asset", fileName: "sources.sha256", source: `${sourcesHash()}\n` });
    this.emitFile({
      type: "asset",
      fileName: "three-LICENSE.txt",
      source: readFileSync(join(import.meta.dirname, "node_modules/three/LICENSE")),
    });
  },
};

export default defineConfig({
  base: "./",
  plugins: [packageFiles],
  build: {
    outDir: "../mega_backend/assets/web",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 1000,
    rollupOptions: {
      output: { entryFileNames: "app.js", chunkFileNames: "[name].js", assetFileNames: "[name][extname]" },
    },
  },
  server: {
    // `npm run dev` beside a running backend.
    proxy: Object.fromEntries(
      ["health", "body", "recover", "resample", "random", "find", "video", "pose", "rig", "metrics", "openapi.json"]
        .map((name) => [`/${name}`, "http://127.0.0.1:8765"]),
    ),
  },
});

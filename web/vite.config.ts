// Builds the page into the Python package. File names are fixed and nothing depends on time or place, so that the same
// sources give the same bytes; the server sends them with their hashes as ETags.
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
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
      ["/health", "/body", "/recover", "/resample", "/random"].map((path) => [path, "http://127.0.0.1:8765"]),
    ),
  },
});

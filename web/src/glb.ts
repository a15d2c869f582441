// People as one binary glTF file: a mesh each, the other alternatives as morph targets, and the picture's camera.

import { normals, type Person, type Scene, type Topology } from "./body";

const FLOAT = 5126;
const UNSIGNED_INT = 5125;

export function glb(people: Person[], topology: Topology, scene: Scene | null): Uint8Array<ArrayBuffer> {
  const chunks: Uint8Array[] = [];
  const bufferViews: object[] = [];
  const accessors: object[] = [];
  let offset = 0;

  const add = (data: Float32Array | Uint32Array, type: "SCALAR" | "VEC3"): number => {
    bufferViews.push({ buffer: 0, byteOffset: offset, byteLength: data.byteLength });
    chunks.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    offset += data.byteLength;
    const components = type === "VEC3" ? 3 : 1;
    const bounds = type === "VEC3" ? extent(data as Float32Array) : {};
    accessors.push({
      bufferView: bufferViews.length - 1,
      componentType: data instanceof Float32Array ? FLOAT : UNSIGNED_INT,
      count: data.length / components,
      type,
      ...bounds,
    });
    return accessors.length - 1;
  };

  const indices = add(topology.triangles, "SCALAR");
  const meshes = people.map((person) => {
    const base = person.alternatives[person.shown]!;
    const others = person.alternatives.map((_, n) => n).filter((n) => n !== person.shown);
    const primitive = {
      attributes: { POSITION: add(base, "VEC3"), NORMAL: add(normals(base, topology.triangles), "VEC3") },
      indices,
      targets: others.map((n) => ({ POSITION: add(person.alternatives[n]!.map((x, i) => x - base[i]!), "VEC3") })),
    };
    if (!others.length) return { primitives: [{ attributes: primitive.attributes, indices }] };
    const targetNames = others.map((n) => `Alternative ${n + 1}`);
    return { primitives: [primitive], weights: others.map(() => 0), extras: { targetNames } };
  });

  const nodes: object[] = meshes.map((_, n) => ({ name: `Person ${n + 1}`, mesh: n }));
  const document: Record<string, unknown> = {
    asset: { version: "2.0", generator: "MEGA Mesh Recovery" },
    scene: 0,
    buffers: [{ byteLength: offset }],
    bufferViews,
    accessors,
    meshes,
  };
  if (scene) {
    const yfov = 2 * Math.atan(scene.height / 2 / scene.focalLength);
    document.cameras = [
      { type: "perspective", perspective: { yfov, aspectRatio: scene.width / scene.height, znear: 0.01 } },
    ];
    nodes.push({ name: "Picture's camera", camera: 0 });
  }
  document.nodes = nodes;
  document.scenes = [{ nodes: nodes.map((_, n) => n) }];
  return pack(document, chunks, offset);
}

function extent(data: Float32Array): { min: number[]; max: number[] } {
  const [min, max] = [[Infinity, Infinity, Infinity], [-Infinity, -Infinity, -Infinity]];
  data.forEach((value, i) => {
    min[i % 3] = Math.min(min[i % 3]!, value);
    max[i % 3] = Math.max(max[i % 3]!, value);
  });
  return { min, max };
}

function pack(document: object, chunks: Uint8Array[], size: number): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(JSON.stringify(document));
  const jsonSize = Math.ceil(text.length / 4) * 4;
  const out = new Uint8Array(12 + 8 + jsonSize + 8 + size);
  const view = new DataView(out.buffer);
  [0x46546c67, 2, out.length, jsonSize, 0x4e4f534a].forEach((value, i) => view.setUint32(i * 4, value, true));
  out.fill(0x20, 20, 20 + jsonSize);
  out.set(text, 20);
  view.setUint32(20 + jsonSize, size, true);
  view.setUint32(24 + jsonSize, 0x004e4942, true);
  let offset = 28 + jsonSize;
  for (const chunk of chunks) {
    out.set(chunk, offset);
    offset += chunk.length;
  }
  return out;
}

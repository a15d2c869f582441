// The body's topology and the people made of it.

import type { Message, Tensor } from "./protocol";

export interface Topology {
  triangles: Uint32Array;
  vertexPart: Int32Array;
  partNames: string[];
  vertexCount: number;
}

export interface Person {
  arrays: Record<string, Tensor>;
  /** One Float32Array (3V) for each alternative: metres, Y up, the camera at the origin looking along -Z. */
  alternatives: Float32Array[];
  logProbability: number[];
  /** Per vertex, metres: how much the alternatives differ. */
  spread: Float32Array | null;
  shown: number;
  locked: Set<string>;
  previous: Person | null;
}

export interface Scene {
  width: number;
  height: number;
  focalLength: number;
}

export function topologyOf(message: Message): Topology {
  const quads = message.arrays.quads!;
  const corners = quads.shape[1]!;
  const faces = quads.shape[0]!;
  const triangles = new Uint32Array(faces * (corners - 2) * 3);
  for (let face = 0, out = 0; face < faces; face++) {
    for (let corner = 1; corner < corners - 1; corner++) {
      for (const index of [0, corner, corner + 1]) triangles[out++] = quads.data[face * corners + index]!;
    }
  }
  const vertexPart = Int32Array.from(message.arrays.vertex_part!.data);
  return { triangles, vertexPart, partNames: message.fields.part_names as string[], vertexCount: vertexPart.length };
}

/** A person message; camera space (x right, y down, z forward) becomes the viewer's (x right, y up, z backward). */
export function personOf(message: Message): Person {
  const { vertices, log_probability: logProbability, spread } = message.arrays;
  const [count, size] = [vertices!.shape[0]!, vertices!.shape[1]! * 3];
  const data = vertices!.data as Float32Array;
  for (let i = 0; i < data.length; i += 3) {
    data[i + 1] = -data[i + 1]!;
    data[i + 2] = -data[i + 2]!;
  }
  const { vertices: _, ...arrays } = message.arrays;
  return {
    arrays,
    alternatives: Array.from({ length: count }, (_, n) => data.subarray(n * size, (n + 1) * size)),
    logProbability: logProbability ? Array.from(logProbability.data) : [],
    spread: spread ? Float32Array.from(spread.data) : null,
    shown: 0,
    locked: new Set(),
    previous: null,
  };
}

/** Arrays of a person from which it can be sampled again, going on from the shown alternative (`PERSON_STATE`). */
export function stateOf(person: Person): Record<string, Tensor> {
  const row = (array: Tensor): Tensor => {
    const size = array.shape.slice(1).reduce((product, n) => product * n, 1);
    const data = array.data.slice(person.shown * size, (person.shown + 1) * size);
    return { data, shape: [1, ...array.shape.slice(1)] };
  };
  const { box, landmarks, landmarks_3d, tokens, log_probability, rotation, translation } = person.arrays as Record<
    string, Tensor
  >;
  const shown = person.alternatives[person.shown]!;
  const vertices = shown.map((value, i) => (i % 3 ? -value : value));
  return {
    box: box!, landmarks: landmarks!, landmarks_3d: landmarks_3d!, tokens: row(tokens!),
    log_probability: row(log_probability!), rotation: row(rotation!), translation: row(translation!),
    vertices: { data: vertices, shape: [1, shown.length / 3, 3] },
  };
}

export const centre = (positions: Float32Array): [number, number, number] => {
  const sum: [number, number, number] = [0, 0, 0];
  for (let i = 0; i < positions.length; i++) sum[(i % 3) as 0 | 1 | 2] += positions[i]!;
  return sum.map((value) => value / (positions.length / 3)) as [number, number, number];
};

/** Unit normals (3V) of a triangle mesh, weighted by area. */
export function normals(positions: Float32Array, triangles: Uint32Array): Float32Array {
  const out = new Float32Array(positions.length);
  for (let t = 0; t < triangles.length; t += 3) {
    const [a, b, c] = [triangles[t]! * 3, triangles[t + 1]! * 3, triangles[t + 2]! * 3];
    const [ux, uy, uz] = [0, 1, 2].map((k) => positions[b + k]! - positions[a + k]!) as [number, number, number];
    const [vx, vy, vz] = [0, 1, 2].map((k) => positions[c + k]! - positions[a + k]!) as [number, number, number];
    const normal = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx] as const;
    for (const corner of [a, b, c]) for (const k of [0, 1, 2] as const) out[corner + k]! += normal[k];
  }
  for (let i = 0; i < out.length; i += 3) {
    const length = Math.hypot(out[i]!, out[i + 1]!, out[i + 2]!) || 1;
    for (const k of [0, 1, 2]) out[i + k]! /= length;
  }
  return out;
}

import { expect, test } from "vitest";

import { normals, personOf, stateOf, topologyOf } from "../src/body";
import { glb } from "../src/glb";

const topology = topologyOf({
  kind: "body",
  fields: { part_names: ["torso"] },
  arrays: {
    quads: { data: Int32Array.from([0, 1, 2, 3]), shape: [1, 4] },
    vertex_part: { data: new Int32Array(4), shape: [4] },
  },
});

const camera = [0, 0, 2, 1, 0, 2, 1, 1, 2, 0, 1, 2]; // x right, y down, z forward
const row = (size: number) => ({ data: Float32Array.from({ length: 2 * size }, (_, i) => i), shape: [2, size] });
const person = () =>
  personOf({
    kind: "person",
    fields: {},
    arrays: {
      vertices: { data: Float32Array.from([...camera, ...camera.map((x) => x + 1)]), shape: [2, 4, 3] },
      box: row(2), landmarks: row(3), landmarks_3d: row(3),
      tokens: row(54), log_probability: { data: Float32Array.from([-1, -2]), shape: [2] },
      rotation: row(9), translation: row(3),
    },
  });

test("quads become triangles and vertices stand upright before the camera", () => {
  expect([...topology.triangles]).toEqual([0, 1, 2, 0, 2, 3]);
  expect([...person().alternatives[0]!.slice(6, 9)]).toEqual([1, -1, -2]);
});

test("normals have unit length", () => {
  const found = normals(person().alternatives[0]!, topology.triangles);
  expect(Math.hypot(found[0]!, found[1]!, found[2]!)).toBeCloseTo(1);
});

test("what goes back to the backend is the shown alternative in its own axes", () => {
  const one = person();
  one.shown = 1;
  const state = stateOf(one);
  expect([...state.vertices!.data]).toEqual(camera.map((x) => x + 1));
  expect(state.tokens!.shape).toEqual([1, 54]);
  expect(state.tokens!.data[0]).toBe(54);
  expect([...state.log_probability!.data]).toEqual([-2]);
});

test("a .glb holds people, alternatives as morph targets and the camera", () => {
  const bytes = glb([person()], topology, { width: 200, height: 100, focalLength: 50 });
  const view = new DataView(bytes.buffer);
  expect(view.getUint32(0, true)).toBe(0x46546c67);
  expect(view.getUint32(8, true)).toBe(bytes.length);
  const size = view.getUint32(12, true);
  const json = JSON.parse(new TextDecoder().decode(bytes.subarray(20, 20 + size)));
  expect(size % 4).toBe(0);
  expect(json.meshes[0].extras.targetNames).toEqual(["Alternative 2"]);
  expect(json.cameras[0].perspective.yfov).toBeCloseTo(Math.PI / 2);
  const last = json.bufferViews.at(-1);
  expect(last.byteOffset + last.byteLength).toBe(json.buffers[0].byteLength);
  expect(28 + size + json.buffers[0].byteLength).toBe(bytes.length);
});

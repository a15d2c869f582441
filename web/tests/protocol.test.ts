import { expect, test } from "vitest";

import { encode, messages, readArray, writeArray, type Message, type Tensor } from "../src/protocol";

function stream(bytes: Uint8Array, size: number): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
      controller.close();
    },
  });
}

async function all(source: ReadableStream<Uint8Array>): Promise<Message[]> {
  const found = [];
  for await (const message of messages(source)) found.push(message);
  return found;
}

const example: Message = {
  kind: "person",
  fields: { index: 3, text: "größe" },
  arrays: {
    vertices: { data: Float32Array.from([1.5, -2, 3, 4, 5, 6]), shape: [1, 2, 3] },
    tokens: { data: Uint16Array.from([7, 511]), shape: [1, 2] },
    none: { data: new Float64Array(0), shape: [0, 4] },
  },
};

test.each([1, 7, 64, 100_000])("messages survive a stream in pieces of %i bytes", async (size) => {
  const bytes = encode(example);
  const twice = new Uint8Array([...bytes, ...bytes]);
  expect(await all(stream(twice, size))).toEqual([example, example]);
});

test("a stream that stops in the middle of a message is an error", async () => {
  const bytes = encode(example);
  await expect(all(stream(bytes.slice(0, bytes.length - 1), 50))).rejects.toThrow("middle of a message");
});

test("what is no message is an error", async () => {
  await expect(all(stream(new TextEncoder().encode("<html>no backend</html>"), 8))).rejects.toThrow("reload");
});

test("arrays are aligned as .npy asks", () => {
  const array: Tensor = { data: Int32Array.from([1, 2]), shape: [2] };
  const bytes = writeArray(array);
  expect((bytes.length - 8) % 64).toBe(0);
  expect(readArray(bytes)).toEqual(array);
});

test("objects and other foreign types are refused", () => {
  const bytes = writeArray({ data: Uint8Array.from([0]), shape: [1] });
  const text = new TextDecoder("latin1").decode(bytes).replace("|u1", "|O8");
  expect(() => readArray(Uint8Array.from(text, (c) => c.charCodeAt(0)))).toThrow("does not travel");
});

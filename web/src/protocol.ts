// The backend's messages: "MEGA", the header's length (uint32, little endian), a JSON header, and `.npy` arrays.
// The one definition is mega_backend/protocol.py; this is its reader and writer for the browser.

export const PROTOCOL = 1;
export const CONTENT_TYPE = "application/x-mega-messages";

const MAGIC = "MEGA";
const HEADER_LIMIT = 1 << 20;
const MESSAGE_LIMIT = 1 << 30;

export type Numbers =
  | Uint8Array | Int8Array | Uint16Array | Int16Array | Uint32Array | Int32Array | Float32Array | Float64Array;

export interface Tensor {
  data: Numbers;
  shape: number[];
}

export interface Message {
  kind: string;
  fields: Record<string, unknown>;
  arrays: Record<string, Tensor>;
}

export class ProtocolError extends Error {}

// "<i8" has no counterpart that computes with plain numbers: it is narrowed on arrival.
const CONSTRUCTORS: Record<string, (buffer: ArrayBuffer) => Numbers> = {
  "|b1": (b) => new Uint8Array(b),
  "|u1": (b) => new Uint8Array(b),
  "|i1": (b) => new Int8Array(b),
  "<u2": (b) => new Uint16Array(b),
  "<i2": (b) => new Int16Array(b),
  "<u4": (b) => new Uint32Array(b),
  "<i4": (b) => new Int32Array(b),
  "<f4": (b) => new Float32Array(b),
  "<f8": (b) => new Float64Array(b),
  "<i8": (b) => Float64Array.from(new BigInt64Array(b), Number),
};

function typeName(data: Numbers): string {
  if (data instanceof Uint8Array) return "|u1";
  if (data instanceof Int8Array) return "|i1";
  if (data instanceof Uint16Array) return "<u2";
  if (data instanceof Int16Array) return "<i2";
  if (data instanceof Uint32Array) return "<u4";
  if (data instanceof Int32Array) return "<i4";
  if (data instanceof Float32Array) return "<f4";
  return "<f8";
}

/** One array in `.npy` form. */
export function readArray(bytes: Uint8Array): Tensor {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 10 || bytes[0] !== 0x93 || view.getUint16(6, true) !== 1 << 0) {
    throw new ProtocolError("An array of the answer is not a .npy of version 1.0.");
  }
  const start = 10 + view.getUint16(8, true);
  const header = new TextDecoder("latin1").decode(bytes.subarray(10, start));
  const type = /'descr':\s*'([^']+)'/.exec(header)?.[1] ?? "";
  const shape = (/'shape':\s*\(([^)]*)\)/.exec(header)?.[1] ?? "").split(",").filter((n) => n.trim()).map(Number);
  const construct = CONSTRUCTORS[type];
  if (!construct || !/'fortran_order':\s*False/.test(header)) {
    throw new ProtocolError(`An array of the answer has the type ${type || "unknown"}, which does not travel.`);
  }
  const itemSize = Number(type[2]);
  if (shape.reduce((product, n) => product * n, 1) * itemSize !== bytes.length - start) {
    throw new ProtocolError("An array of the answer announces a size that it does not have.");
  }
  // A copy: typed arrays need alignment, and the answer's buffer can be freed.
  return { data: construct(bytes.slice(start).buffer as ArrayBuffer), shape };
}

/** `.npy` bytes of one array. */
export function writeArray(array: Tensor): Uint8Array {
  const shape = array.shape.length === 1 ? `${array.shape[0]},` : array.shape.join(", ");
  let header = `{'descr': '${typeName(array.data)}', 'fortran_order': False, 'shape': (${shape}), }`;
  header = header.padEnd(Math.ceil((10 + header.length + 1) / 64) * 64 - 10 - 1) + "\n";
  const out = new Uint8Array(10 + header.length + array.data.byteLength);
  out.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0]);
  new DataView(out.buffer).setUint16(8, header.length, true);
  out.set(new TextEncoder().encode(header), 10);
  out.set(new Uint8Array(array.data.buffer, array.data.byteOffset, array.data.byteLength), 10 + header.length);
  return out;
}

/** The bytes of one message. */
export function encode(message: Message): Uint8Array<ArrayBuffer> {
  const parts = Object.entries(message.arrays).map(([name, array]) => [name, writeArray(array)] as const);
  const header = new TextEncoder().encode(
    JSON.stringify({ kind: message.kind, fields: message.fields, arrays: parts.map(([n, d]) => [n, d.length]) }),
  );
  const out = new Uint8Array(8 + header.length + parts.reduce((sum, [, data]) => sum + data.length, 0));
  out.set(new TextEncoder().encode(MAGIC));
  new DataView(out.buffer).setUint32(4, header.length, true);
  out.set(header, 8);
  let offset = 8 + header.length;
  for (const [, data] of parts) {
    out.set(data, offset);
    offset += data.length;
  }
  return out;
}

/** Exact numbers of bytes out of a stream that arrives in pieces of any size. */
class Source {
  private pieces: Uint8Array[] = [];
  private held = 0;

  constructor(private reader: ReadableStreamDefaultReader<Uint8Array>) {}

  /** `size` bytes; null where the stream ended cleanly before the first of them. */
  async take(size: number): Promise<Uint8Array | null> {
    while (this.held < size) {
      const { value, done } = await this.reader.read();
      if (done) {
        if (this.held === 0) return null;
        throw new ProtocolError("The connection ended in the middle of a message; try again.");
      }
      this.pieces.push(value);
      this.held += value.length;
    }
    const out = new Uint8Array(size);
    let offset = 0;
    while (offset < size) {
      const piece = this.pieces[0]!;
      const part = piece.subarray(0, size - offset);
      out.set(part, offset);
      offset += part.length;
      if (part.length === piece.length) this.pieces.shift();
      else this.pieces[0] = piece.subarray(part.length);
    }
    this.held -= size;
    return out;
  }

  async exactly(size: number): Promise<Uint8Array> {
    if (size === 0) return new Uint8Array(0);
    const bytes = await this.take(size);
    if (!bytes) throw new ProtocolError("The connection ended in the middle of a message; try again.");
    return bytes;
  }
}

/** Every message of a stream, as it arrives. */
export async function* messages(stream: ReadableStream<Uint8Array>): AsyncGenerator<Message> {
  const reader = stream.getReader();
  const source = new Source(reader);
  try {
    for (;;) {
      const start = await source.take(8);
      if (!start) return;
      const length = new DataView(start.buffer).getUint32(4, true);
      if (new TextDecoder("latin1").decode(start.subarray(0, 4)) !== MAGIC || length > HEADER_LIMIT) {
        throw new ProtocolError("The answer is not in the form that this page understands; reload the page.");
      }
      const header = JSON.parse(new TextDecoder().decode(await source.exactly(length)));
      const listing = header.arrays as [string, number][];
      if (listing.reduce((sum, [, size]) => sum + size, 0) > MESSAGE_LIMIT) {
        throw new ProtocolError("The answer is too large; ask for fewer alternatives.");
      }
      const arrays: Record<string, Tensor> = {};
      for (const [name, size] of listing) arrays[name] = readArray(await source.exactly(size));
      yield { kind: header.kind, fields: header.fields, arrays };
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

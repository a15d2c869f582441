// Talking to the backend that served this page. The browser itself carries the token, where there is one.

import { CONTENT_TYPE, encode, messages, PROTOCOL, ProtocolError, type Message } from "./protocol";

export interface Health {
  protocol: number;
  version: string;
  device: string;
  model: Record<string, unknown>;
  status: "loading" | "ready" | "failed";
  progress: number;
  text: string;
  /** what the model looks at: "landmarks" that were found, or the "picture" itself */
  reads: string;
  running: number;
  waiting: number;
}

/** The backend said no, or could not be reached; the text is a sentence for the user. */
export class BackendError extends Error {}

// Absolute and without user name: a page opened as http://user:token@host may not fetch relative addresses.
const address = (name: string) => new URL(name, `${location.origin}${location.pathname.replace(/[^/]*$/, "")}`);

async function open(name: string, options: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(address(name), { cache: "no-cache", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new BackendError("The backend does not answer; start it again with “mega serve”.");
  }
  if (!response.ok) {
    const detail = await response.json().then((body) => body.detail, () => null);
    const again = response.headers.get("Retry-After");
    const text = typeof detail === "string" ? detail : `The backend refused (${response.status}).`;
    throw new BackendError(again && !text.includes("again") ? `${text} Try again in ${again} s.` : text);
  }
  return response;
}

export async function health(): Promise<Health> {
  const answer = (await (await open("health")).json()) as Health;
  if (answer.protocol !== PROTOCOL) throw new BackendError("The backend was updated: reload this page.");
  return answer;
}

export async function body(): Promise<Message> {
  for await (const message of messages((await open("body")).body!)) return message;
  throw new ProtocolError("The backend sent no body.");
}

/** Send a request; its answers as they arrive. Aborting the signal stops the work on the backend too. */
export async function* ask(request: Message, signal: AbortSignal): AsyncGenerator<Message> {
  const headers = { "Content-Type": CONTENT_TYPE };
  const response = await open(request.kind, { method: "POST", body: encode(request), headers, signal });
  let finished = false;
  for await (const message of messages(response.body!)) {
    if (message.kind === "error") throw new BackendError(String(message.fields.text));
    finished = message.kind === "done";
    yield message;
  }
  if (!finished) throw new BackendError("The backend stopped before it was done; look at its log and try again.");
}

// The page: a picture in, people out, and what can be done with them.

import { personOf, stateOf, topologyOf, type Person, type Scene, type Topology } from "./body";
import { ask, body, health, type Health } from "./client";
import { glb } from "./glb";
import type { Message } from "./protocol";
import { Viewer, type Colouring, type View } from "./viewer";

const STATUS_INTERVAL = 2000;
/** Milliseconds that the backend takes to put a request away after its last answer. */
const SETTLED = 100;

const element = <T extends Element>(id: string) => document.getElementById(id) as unknown as T;
const button = (id: string) => element<HTMLButtonElement>(id);
const input = (id: string) => element<HTMLInputElement>(id);

let topology: Topology | null = null;
let viewer: Viewer | null = null;
let people: Person[] = [];
let scene: Scene | null = null;
let selected = 0;
let rolls = 0;
let picture: Uint8Array | null = null;
let reads = "landmarks";
let work: AbortController | null = null;

// ---------------------------------------------------------------------------------------------------------------------
// Status

const EMPTY = element("empty").textContent ?? "";

/** What goes on, beside the bar and where the people will be. */
function tell(text: string): void {
  element("doing").textContent = text;
  if (viewer) element("empty").textContent = text || EMPTY;
}

function say(text: string): void {
  element("message").textContent = text;
}

function describe(answer: Health): [string, string] {
  const model = String(answer.model.name ?? "model");
  if (answer.status === "failed") return ["away", "The model could not be loaded; the backend's log says why."];
  if (answer.status === "loading") return ["busy", `Loading: ${answer.text} (${Math.round(answer.progress * 100)} %)`];
  reads = answer.reads;
  const { running } = answer;
  const queue = running ? `${running} running, ${answer.waiting} waiting` : "idle";
  return [running ? "busy" : "ready", `${model} on ${answer.device} · ${queue} · ${answer.version}`];
}

/** Asks for the status at once; what it says is true when work begins and ends, not two seconds later. */
let askNow: () => void = () => undefined;

async function watch(): Promise<void> {
  const status = element<HTMLElement>("status");
  for (;;) {
    const asked = new Promise<void>((resolve) => (askNow = resolve));
    if (!document.hidden) {
      let [state, text] = ["away", ""];
      try {
        [state, text] = describe(await health());
      } catch (error) {
        text = (error as Error).message;
      }
      if (status.textContent !== text) status.textContent = text;
      status.dataset.state = state;
    }
    await Promise.race([asked, new Promise((resolve) => setTimeout(resolve, STATUS_INTERVAL))]);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Work

function whole(id: string): number {
  const field = input(id);
  const value = Math.round(Number(field.value) || Number(field.min));
  return Math.min(Math.max(value, Number(field.min)), Number(field.max));
}

/** Run one request; `take` gets its messages other than progress. */
async function run(request: Message, take: (message: Message) => void): Promise<boolean> {
  work?.abort();
  const mine = (work = new AbortController());
  const progress = element<HTMLProgressElement>("progress");
  say("");
  progress.removeAttribute("value");
  let begun = false;
  tell("Sending …");
  element<HTMLElement>("work").hidden = false;
  try {
    await prepare();
    for await (const message of ask(request, mine.signal)) {
      if (!begun) askNow();
      begun = true;
      if (message.kind === "progress") {
        progress.value = Number(message.fields.fraction);
        tell(sentence(String(message.fields.text || "working")));
      } else if (message.kind === "queued") {
        tell("Waiting for its turn …");
      } else take(message);
    }
    return true;
  } catch (error) {
    if (!mine.signal.aborted) say((error as Error).message);
    return false;
  } finally {
    if (work === mine) {
      work = null;
      element<HTMLElement>("work").hidden = true;
      tell("");
      setTimeout(() => askNow(), SETTLED);
    }
  }
}

const sentence = (text: string): string => `${text.charAt(0).toUpperCase()}${text.slice(1)} …`;

/** What is needed once, before the first people can be shown. */
async function prepare(): Promise<void> {
  if (!topology) {
    topology = topologyOf(await body());
    viewer?.setTopology(topology);
  }
}

async function recover(file: Blob): Promise<void> {
  const preview = element<HTMLImageElement>("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  element<HTMLImageElement>("backdrop").src = preview.src;
  preview.alt = "The chosen picture";
  preview.hidden = false;
  element<HTMLElement>("hint").hidden = true;
  element("drop").classList.add("full");
  picture = new Uint8Array(await file.arrayBuffer());
  const fields = { hypotheses: whole("count"), seed: whole("seed") };
  await replace({ kind: "recover", fields, arrays: { picture: { data: picture, shape: [picture.length] } } }, true);
}

async function random(): Promise<void> {
  const fields = { count: 1, seed: whole("seed") + rolls++ };
  await replace({ kind: "random", fields, arrays: {} }, false);
}

/** Ask for new people in place of those shown. */
async function replace(request: Message, withPicture: boolean): Promise<void> {
  const found: Person[] = [];
  show([], null);
  const done = await run(request, (message) => {
    if (message.kind === "scene") scene = withPicture ? sceneOf(message) : null;
    if (message.kind === "person") {
      found.push(personOf(message));
      show(found, scene);
    }
  });
  if (done && !found.length) say("Nobody was found in this picture; try one where a person is larger and fully visible.");
}

function sceneOf(message: Message): Scene {
  const size = message.fields.picture_size as [number, number];
  return { width: size[0], height: size[1], focalLength: Number(message.fields.focal_length) };
}

async function reroll(): Promise<void> {
  const person = people[selected];
  if (!person || work) return;
  const number = selected;
  const fields = {
    keep: [...person.locked],
    hypotheses: whole("count"),
    seed: (whole("seed") + ++rolls) % 2 ** 31,
    ...(scene && { focal_length: scene.focalLength, picture_width: scene.width, picture_height: scene.height }),
  };
  const arrays = stateOf(person);
  if (scene && picture && reads === "picture") arrays.picture = { data: picture, shape: [picture.length] };
  await run({ kind: "resample", fields, arrays }, (message) => {
    if (message.kind !== "person") return;
    const again = personOf(message);
    again.locked = person.locked;
    again.previous = person;
    put(number, again);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// What is shown

function show(newPeople: Person[], newScene: Scene | null): void {
  people = newPeople;
  scene = newScene;
  selected = Math.min(selected, Math.max(people.length - 1, 0));
  viewer?.show(people, scene);
  // Once there, it stays: the view would jump with every new picture.
  const controls = element<HTMLElement>("controls");
  if (people.length) controls.hidden = false;
  controls.inert = !people.length;
  element<HTMLElement>("empty").hidden = people.length > 0 && viewer !== null;
  element<HTMLElement>("views").hidden = !scene;
  element<HTMLElement>("home").hidden = !people.length || !viewer;
  looking(chosenView());
  refresh();
}

function put(number: number, person: Person): void {
  people[number] = person;
  viewer?.pose(number);
  refresh();
}

function refresh(): void {
  const person = people[selected];
  drawBoxes();
  chips("people", people.map((_, n) => `${n + 1}`), "radio", (_, n) => n === selected, (_, n) => select(n));
  element<HTMLElement>("people").hidden = people.length < 2;
  if (!person || !topology) return;
  const count = person.alternatives.length;
  const slider = input("alternative");
  slider.max = String(count);
  slider.value = String(person.shown + 1);
  slider.disabled = button("before").disabled = button("after").disabled = count < 2;
  const likelihood = person.logProbability[person.shown];
  const best = person.shown === 0 && !person.previous && scene ? ", the single best guess" : "";
  const which = element<HTMLElement>("which");
  which.textContent = `${person.shown + 1} of ${count}${best}`;
  which.title = Number.isFinite(likelihood) ? `Log-likelihood ${likelihood!.toFixed(1)}` : "";
  const names = topology.partNames;
  chips("parts", names.map((name) => name.replace("_", " ")), "checkbox", (_, n) => person.locked.has(names[n]!),
    (_, n) => lock(names[n]!));
  button("undo").disabled = !person.previous;
  viewer?.paint(selected, colouring());
}

/** A row of choices; built once for the same texts, so that the keyboard's focus stays where it is. */
function chips(
  id: string, texts: string[], type: "radio" | "checkbox",
  checked: (text: string, n: number) => boolean, change: (text: string, n: number) => void,
): void {
  const host = element<HTMLElement>(id);
  const row = host.classList.contains("chips") ? host : host.querySelector(".chips")!;
  if (row.children.length !== texts.length) {
    row.replaceChildren(...texts.map((text, n) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      const name = document.createElement("span");
      label.className = "chip";
      Object.assign(box, { type, name: id });
      name.textContent = text;
      box.addEventListener("change", () => change(text, n));
      label.append(box, name);
      return label;
    }));
  }
  row.querySelectorAll("input").forEach((box, n) => (box.checked = checked(texts[n]!, n)));
}

function drawBoxes(): void {
  const svg = element<SVGSVGElement>("boxes");
  svg.replaceChildren();
  if (!scene) return;
  svg.setAttribute("viewBox", `0 0 ${scene.width} ${scene.height}`);
  for (const [number, person] of people.entries()) {
    const box = person.arrays.box?.data;
    if (!box) continue;
    const group = document.createElementNS(svg.namespaceURI, "g") as SVGGElement;
    const rectangle = document.createElementNS(svg.namespaceURI, "rect");
    const [x0, y0, x1, y1] = [...box] as [number, number, number, number];
    for (const [name, value] of Object.entries({ x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: 4 })) {
      rectangle.setAttribute(name, String(value));
    }
    group.classList.toggle("chosen", number === selected && people.length > 1);
    group.append(rectangle);
    group.addEventListener("click", (event) => {
      event.preventDefault();
      select(number);
    });
    svg.append(group);
  }
}

function select(number: number): void {
  if (!people.length) return;
  selected = (number + people.length) % people.length;
  viewer?.focus(selected);
  refresh();
}

function step(by: number): void {
  const person = people[selected];
  if (!person) return;
  const count = person.alternatives.length;
  person.shown = (person.shown + by + count) % count;
  put(selected, person);
}

function lock(part: string): void {
  const locked = people[selected]?.locked;
  if (!locked) return;
  if (!locked.delete(part)) locked.add(part);
  refresh();
}

function look(view: View): void {
  viewer?.look(view);
  looking(view);
}

/** Show which view is chosen, and the picture behind the people where it belongs there. */
function looking(view: View): void {
  for (const choice of document.querySelectorAll<HTMLInputElement>("input[name=look]")) choice.checked = choice.value === view;
  element<HTMLElement>("backdrop").hidden = view !== "picture" || !scene;
}

function chosenView(): View {
  return document.querySelector<HTMLInputElement>("input[name=look]:checked")!.value as View;
}

function colouring(): Colouring {
  return document.querySelector<HTMLInputElement>("input[name=colour]:checked")!.value as Colouring;
}

function download(): void {
  if (!topology || !people.length) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([glb(people, topology, scene)], { type: "model/gltf-binary" }));
  link.download = "people.glb";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---------------------------------------------------------------------------------------------------------------------
// Wiring

function open(files: FileList | null | undefined): void {
  const file = [...(files ?? [])].find((one) => one.type.startsWith("image/") || !one.type);
  if (file) void recover(file);
  else if (files?.length) say("This is no picture; JPEG, PNG, WebP, TIFF, BMP and GIF can be read.");
}

function wire(): void {
  const drop = element<HTMLElement>("drop");
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragenter" || name === "dragover");
    });
  }
  addEventListener("drop", (event) => open(event.dataTransfer?.files));
  addEventListener("paste", (event) => open(event.clipboardData?.files));
  input("file").addEventListener("change", () => {
    open(input("file").files);
    input("file").value = "";
  });
  const actions: Record<string, () => void> = {
    choose: () => input("file").click(),
    random: () => void random(),
    cancel: () => work?.abort(),
    before: () => step(-1),
    after: () => step(1),
    reroll: () => void reroll(),
    undo: () => people[selected]?.previous && put(selected, people[selected]!.previous!),
    download,
    home: () => look("turn"),
  };
  for (const [id, action] of Object.entries(actions)) button(id).addEventListener("click", action);
  input("alternative").addEventListener("input", () => {
    const person = people[selected];
    if (person) step(Number(input("alternative").value) - 1 - person.shown);
  });
  for (const choice of document.querySelectorAll("input[name=look]")) {
    choice.addEventListener("change", () => look(chosenView()));
  }
  for (const choice of document.querySelectorAll("input[name=colour]")) {
    choice.addEventListener("change", () => {
      element<HTMLElement>("scale").hidden = colouring() !== "uncertainty";
      refresh();
    });
  }
  const keys: Record<string, () => unknown> = {
    ",": () => step(-1),
    ".": () => step(1),
    "[": () => select(selected - 1),
    "]": () => select(selected + 1),
    r: () => void reroll(),
    p: () => people.length && scene && look(chosenView() === "picture" ? "turn" : "picture"),
    o: () => input("file").click(),
    Escape: () => work?.abort(),
  };
  addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement && event.target.type === "number";
    if (event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== "Escape")) return;
    keys[event.key]?.();
  });
}

function start(): void {
  wire();
  try {
    viewer = new Viewer(element<HTMLCanvasElement>("view"));
    viewer.onView = looking;
    viewer.onPick = ({ person, part }) => (person === selected ? lock(part) : select(person));
  } catch {
    element("empty").textContent = "This browser shows no 3D (WebGL is off); the download works all the same.";
  }
  void watch();
}

start();

// The three-dimensional view: people as meshes that turn under the mouse or the arrow keys.

import {
  BufferAttribute, BufferGeometry, Color, DirectionalLight, Group, HemisphereLight, Mesh, MeshStandardMaterial,
  PerspectiveCamera, Raycaster, Scene as Stage, SRGBColorSpace, Vector2, Vector3, WebGLRenderer,
} from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";

import { centre, type Person, type Scene, type Topology } from "./body";

export type Colouring = "plain" | "uncertainty";
/** Turning freely, or exactly as the picture's camera saw the people, with the picture behind them. */
export type View = "turn" | "picture";

const SKIN = new Color(0xd6c3b6);
const OTHER = new Color(0xa7afb8);
const LOCKED = new Color(0x3d8bd4);
// From sure to unsure: perceptually even, readable with colour-vision deficiencies.
const SCALE = [0x30123b, 0x4454c4, 0x1ba3dc, 0x2ae5a0, 0xc6e03a, 0xfd9a2c, 0xc3300b].map((hex) => new Color(hex));
/** Metres of spread at the end of the scale. */
const UNSURE = 0.15;
const TURN = Math.PI / 24;
/** Room around the people, relative to them. */
const MARGIN = 1.12;

export class Viewer {
  /** Called with a part's name when it is clicked on the selected person, or with a person's number on another one. */
  onPick: (pick: { person: number; part: string }) => void = () => undefined;

  private renderer: WebGLRenderer;
  private stage = new Stage();
  private camera = new PerspectiveCamera(40, 1, 0.01, 1000);
  private controls: OrbitControls;
  private group = new Group();
  private topology: Topology | null = null;
  private people: Person[] = [];
  private scene: Scene | null = null;
  /** Where each person's shown alternative stands. */
  private middles: (Vector3 | null)[] = [];
  private view: View = "turn";
  private drawn = false;

  /** Called when the view changes by itself: whoever turns the people leaves the picture. */
  onView: (view: View) => void = () => undefined;

  /** Throws where the browser has no WebGL. */
  constructor(private canvas: HTMLCanvasElement) {
    this.renderer = new WebGLRenderer({ canvas, antialias: true, alpha: true });
    this.renderer.outputColorSpace = SRGBColorSpace;
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    // They turn with the camera: key from the upper left, a cool rim from behind that parts limbs from the ground.
    const key = new DirectionalLight(0xfff4ea, 2.0);
    key.position.set(-0.7, 0.9, 0.9);
    const rim = new DirectionalLight(0xbfd4ff, 1.6);
    rim.position.set(0.9, 0.5, -0.8);
    // A light shines towards its target, which would else stay at the origin.
    this.camera.add(key, key.target, rim, rim.target);
    this.stage.add(this.camera, new HemisphereLight(0xffffff, 0x5c5a58, 1.1), this.group);
    this.controls = new OrbitControls(this.camera, canvas);
    this.controls.addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement!);
    canvas.addEventListener("keydown", (event) => this.key(event));
    let pressed = new Vector2();
    canvas.addEventListener("pointerdown", (event) => (pressed = new Vector2(event.clientX, event.clientY)));
    // Before the controls see them: from the picture's camera one turns as from anywhere else.
    for (const name of ["pointermove", "wheel"] as const) {
      canvas.addEventListener(name, (event) => {
        if (this.view === "picture" && (name === "wheel" || (event as PointerEvent).buttons)) this.leavePicture();
      }, { capture: true, passive: true });
    }
    canvas.addEventListener("pointerup", (event) => {
      // A click, not the end of a turn.
      if (pressed.distanceTo(new Vector2(event.clientX, event.clientY)) < 4) this.pick(event);
    });
    this.resize();
  }

  setTopology(topology: Topology): void {
    this.topology = topology;
  }

  /** New people, seen as in the picture. */
  show(people: Person[], scene: Scene | null): void {
    this.people = people;
    this.scene = scene;
    for (const mesh of this.meshes()) {
      mesh.geometry.dispose();
      mesh.material.dispose();
    }
    this.group.clear();
    for (const [number] of people.entries()) {
      const geometry = new BufferGeometry();
      geometry.setIndex(new BufferAttribute(this.topology!.triangles, 1));
      const size = this.topology!.vertexCount * 3;
      for (const name of ["position", "color"]) geometry.setAttribute(name, new BufferAttribute(new Float32Array(size), 3));
      const material = new MeshStandardMaterial({ vertexColors: true, roughness: 0.75, metalness: 0 });
      const mesh = new Mesh(geometry, material);
      mesh.userData.person = number;
      this.middles[number] = null;
      mesh.frustumCulled = false;
      this.group.add(mesh);
      this.pose(number);
    }
    if (this.view === "picture" && !scene) this.leavePicture();
    else this.home();
  }

  /** Choose how the people are seen; what needs a picture does nothing without one. */
  look(view: View): void {
    this.view = view === "picture" && !this.scene ? "turn" : view;
    this.home();
  }

  private leavePicture(): void {
    this.look("turn");
    this.onView("turn");
  }

  /** The shown alternative of a person has changed. */
  pose(number: number): void {
    const mesh = this.meshes()[number];
    const person = this.people[number];
    if (!mesh || !person) return;
    const position = mesh.geometry.getAttribute("position") as BufferAttribute;
    position.array.set(person.alternatives[person.shown]!);
    position.needsUpdate = true;
    mesh.geometry.computeVertexNormals();
    mesh.geometry.computeBoundingSphere();
    this.follow(number, new Vector3(...centre(person.alternatives[person.shown]!)));
    this.draw();
  }

  /** Turn about this person from now on. */
  focus(number: number): void {
    const middle = this.middles[number];
    if (!middle || this.view === "picture") return;
    const step = middle.clone().sub(this.controls.target);
    this.camera.position.add(step);
    this.controls.target.add(step);
    this.controls.update();
    this.draw();
  }

  /** Alternatives stand nearer or further: who turns them goes along, or they would jump out of view. */
  private follow(number: number, middle: Vector3): void {
    const before = this.middles[number];
    this.middles[number] = middle;
    if (!before || this.view === "picture") return;
    const step = middle.clone().sub(before);
    this.camera.position.add(step);
    this.controls.target.add(step);
    this.controls.update();
  }

  /** Colours: the selected person, its locked parts, or how sure the model is. */
  paint(selected: number, colouring: Colouring): void {
    const parts = this.topology?.vertexPart;
    if (!parts) return;
    for (const mesh of this.meshes()) {
      const person = this.people[mesh.userData.person as number]!;
      const chosen = mesh.userData.person === selected;
      const locked = this.topology!.partNames.map((name) => chosen && person.locked.has(name));
      const colours = mesh.geometry.getAttribute("color") as BufferAttribute;
      const colour = new Color();
      // One body alone does not tell how far others would be from it.
      const unsure = colouring === "uncertainty" && person.spread && person.alternatives.length > 1;
      for (let vertex = 0; vertex < parts.length; vertex++) {
        if (unsure) scale(person.spread![vertex]! / UNSURE, colour);
        else colour.copy(chosen || this.people.length === 1 ? SKIN : OTHER);
        if (colouring === "plain" && locked[parts[vertex]!]) colour.lerp(LOCKED, 0.75);
        colours.setXYZ(vertex, colour.r, colour.g, colour.b);
      }
      colours.needsUpdate = true;
    }
    this.draw();
  }

  /** From where the picture was taken, the people filling the view; without a picture, in front of them. */
  home(): void {
    const middles = this.people.map((person) => new Vector3(...centre(person.alternatives[person.shown]!)));
    const target = middles.reduce((sum, middle) => sum.add(middle), new Vector3()).divideScalar(middles.length || 1);
    this.camera.position.copy(this.scene ? new Vector3() : target.clone().add(new Vector3(0, 0.15, 6)));
    // The picture's camera looks straight ahead, wherever in the picture the people are.
    this.controls.target.copy(this.view === "picture" ? new Vector3(0, 0, target.z || -1) : target);
    this.controls.update();
    this.fit();
    this.draw();
  }

  /** Open the lens just so far that everybody is in view; in the picture's view, all of the picture. */
  private fit(): void {
    const tangent = this.view === "picture" && this.scene ? this.pictureTangent(this.scene) : MARGIN * this.widest();
    this.camera.fov = Math.min((2 * Math.atan(tangent) * 180) / Math.PI, 120);
    this.camera.updateProjectionMatrix();
  }

  /** Tangent of half the angle of view, from top to bottom, in which the whole picture lies. */
  private pictureTangent({ width, height, focalLength }: Scene): number {
    return Math.max(height, width / this.camera.aspect) / 2 / focalLength;
  }

  /** The same for all people, from where the camera stands. */
  private widest(): number {
    this.camera.updateMatrixWorld();
    const point = new Vector3();
    let widest = Math.tan(Math.PI / 40);
    for (const person of this.people) {
      const positions = person.alternatives[person.shown]!;
      for (let i = 0; i < positions.length; i += 30) {
        point.fromArray(positions, i).applyMatrix4(this.camera.matrixWorldInverse);
        const depth = Math.max(-point.z, 0.05);
        widest = Math.max(widest, Math.abs(point.y) / depth, Math.abs(point.x) / depth / this.camera.aspect);
      }
    }
    return widest;
  }

  private meshes(): Mesh<BufferGeometry, MeshStandardMaterial>[] {
    return this.group.children as Mesh<BufferGeometry, MeshStandardMaterial>[];
  }

  private draw(): void {
    if (this.drawn) return;
    this.drawn = true;
    requestAnimationFrame(() => {
      this.drawn = false;
      this.renderer.render(this.stage, this.camera);
    });
  }

  private resize(): void {
    const { clientWidth: width, clientHeight: height } = this.canvas.parentElement!;
    if (!width || !height) return;
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    if (this.view === "picture") this.fit();
    this.camera.updateProjectionMatrix();
    this.draw();
  }

  private key(event: KeyboardEvent): void {
    const offset = this.camera.position.clone().sub(this.controls.target);
    const right = new Vector3(1, 0, 0).applyQuaternion(this.camera.quaternion);
    const turns: Record<string, () => void> = {
      ArrowLeft: () => offset.applyAxisAngle(this.camera.up, -TURN),
      ArrowRight: () => offset.applyAxisAngle(this.camera.up, TURN),
      ArrowUp: () => offset.angleTo(this.camera.up) > TURN + 0.05 && offset.applyAxisAngle(right, -TURN),
      ArrowDown: () => offset.angleTo(this.camera.up) < Math.PI - TURN - 0.05 && offset.applyAxisAngle(right, TURN),
      "+": () => offset.multiplyScalar(0.9),
      "=": () => offset.multiplyScalar(0.9),
      "-": () => offset.multiplyScalar(1.1),
      "0": () => this.home(),
    };
    const turn = turns[event.key];
    if (!turn || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (this.view === "picture" && event.key !== "0") this.leavePicture();
    turn();
    if (event.key === "0") return;
    this.camera.position.copy(this.controls.target).add(offset);
    this.controls.update();
  }

  private pick(event: PointerEvent): void {
    const box = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 2 - 1;
    const y = 1 - ((event.clientY - box.top) / box.height) * 2;
    const caster = new Raycaster();
    caster.setFromCamera(new Vector2(x, y), this.camera);
    const hit = caster.intersectObjects(this.group.children)[0];
    if (!hit?.face || !this.topology) return;
    const part = this.topology.partNames[this.topology.vertexPart[hit.face.a]!]!;
    this.onPick({ person: hit.object.userData.person as number, part });
  }
}

function scale(value: number, out: Color): void {
  const place = Math.min(Math.max(value, 0), 1) * (SCALE.length - 1);
  const low = Math.min(Math.floor(place), SCALE.length - 2);
  out.lerpColors(SCALE[low]!, SCALE[low + 1]!, place - low);
}

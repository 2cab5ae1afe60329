// The images: window and level, zoom, panning. The panes of a pair share one view.

const FULL = { level: 127.5, width: 255 };
const PRESETS = [
  { key: "q", name: "Full", ...FULL },
  { key: "w", name: "Lungs", level: 75, width: 150 },
  { key: "e", name: "Mediastinum", level: 180, width: 150 },
  { key: "r", name: "Steep", level: 127.5, width: 128 },
];
const view = { ...FULL, inverted: false, zoom: 0, x: 0, y: 0 };  // zoom 0: as large as fits
const between = (low, value, high) => Math.min(high, Math.max(low, value));
const find = (id) => document.getElementById(id);
let version = 0;

/** Points of the page for a pixel of the image. */
function scale(pane) {
  return view.zoom || Math.min(pane.clientWidth, pane.clientHeight) / STUDY.size;
}

/** The gray levels: a filter whose name changes, as some browsers keep what they drew by its name. */
function paintWindow() {
  const sign = view.inverted ? -1 : 1, low = view.level - view.width / 2;
  const slope = sign * 255 / view.width, first = -sign * low / view.width + (view.inverted ? 1 : 0);
  const filter = document.querySelector("filter");
  for (const part of filter.querySelectorAll("*[type]")) {
    part.setAttribute("slope", slope);
    part.setAttribute("intercept", first);
  }
  version += 1;
  filter.id = `window-${version}`;
  const plain = view.level === FULL.level && view.width === FULL.width && !view.inverted;
  for (const image of document.querySelectorAll(".pane img")) {
    image.style.filter = plain ? "none" : `url(#window-${version})`;
  }
}

function paint() {
  paintWindow();
  const dots = window.devicePixelRatio;
  for (const pane of document.querySelectorAll(".pane")) {
    const times = scale(pane), side = STUDY.size * times;
    const whole = (value) => Math.round(value * dots) / dots;  // so that 1:1 is 1:1
    const left = whole((pane.clientWidth - side) / 2 + view.x), top = whole((pane.clientHeight - side) / 2 + view.y);
    const image = pane.querySelector("img");
    image.width = image.height = STUDY.size;
    image.style.transform = `translate(${left}px, ${top}px) scale(${times})`;
    image.style.imageRendering = view.zoom && times * dots >= 4 ? "pixelated" : "auto";
  }
  const pane = document.querySelector(".pane");
  const percent = pane ? Math.round(100 * scale(pane) * dots) : 100;
  find("readout").textContent =
    `W ${Math.round(view.width)}  L ${Math.round(view.level)}${view.inverted ? "  inverted" : ""}  ${percent} %`;
  find("invert").setAttribute("aria-pressed", view.inverted);
  find("one").setAttribute("aria-pressed", percent === 100);
  for (const [number, preset] of PRESETS.entries()) {
    const on = preset.level === view.level && preset.width === view.width;
    find("presets").children[number].setAttribute("aria-pressed", on);
  }
}

function change(changes) {
  Object.assign(view, changes);
  view.width = between(2, view.width, 510);
  view.level = between(0, view.level, 255);
  paint();
}

const fitted = () => change({ ...FULL, inverted: false, zoom: 0, x: 0, y: 0 });
const oneToOne = () => change({ zoom: 1 / window.devicePixelRatio, x: 0, y: 0 });
const invert = () => change({ inverted: !view.inverted });
const pan = (x, y) => change({ zoom: scale(document.querySelector(".pane")), x: view.x + x, y: view.y + y });
const windowBy = (width, level) => change({ width: view.width + width, level: view.level + level });

/** Zooms; the point of the pane that is given, or its middle, stays where it is. */
function zoomBy(factor, pane = document.querySelector(".pane"), x = 0, y = 0) {
  const before = scale(pane), fit = Math.min(pane.clientWidth, pane.clientHeight) / STUDY.size;
  const after = between(Math.min(fit, 1 / window.devicePixelRatio) / 2, before * factor, Math.max(16, 8 * fit));
  change({ zoom: after, x: x - (x - view.x) * after / before, y: y - (y - view.y) * after / before });
}

/** The places of a pane's pointers, from its middle. */
function places(pane, pointers) {
  const box = pane.getBoundingClientRect();
  return [...pointers.values()].map((at) => [at.x - box.left - box.width / 2, at.y - box.top - box.height / 2]);
}

/** A drag is window and level; with Shift, another button or two fingers it moves, and two fingers zoom. */
function listen(pane) {
  const pointers = new Map();
  pane.addEventListener("pointerdown", (event) => {
    pane.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    event.preventDefault();
  });
  pane.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const before = places(pane, pointers), x = event.clientX - last.x, y = event.clientY - last.y;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size === 2) pinch(pane, before, places(pane, pointers));
    else if (event.shiftKey || event.buttons & 6) pan(x, y);
    else windowBy(x / 2, y / 2);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    pane.addEventListener(end, (event) => pointers.delete(event.pointerId));
  }
  pane.addEventListener("contextmenu", (event) => event.preventDefault());
  pane.addEventListener("dblclick", fitted);
  pane.addEventListener("wheel", (event) => {
    event.preventDefault();
    const [[x, y]] = places(pane, new Map([[0, { x: event.clientX, y: event.clientY }]]));
    zoomBy(Math.exp(-event.deltaY / 400), pane, x, y);
  }, { passive: false });
}

function pinch(pane, before, after) {
  const middle = ([one, other]) => [(one[0] + other[0]) / 2, (one[1] + other[1]) / 2];
  const length = ([one, other]) => Math.hypot(one[0] - other[0], one[1] - other[1]);
  const [from, to] = [middle(before), middle(after)];
  pan(to[0] - from[0], to[1] - from[1]);
  if (length(before) > 0) zoomBy(length(after) / length(before), pane, ...to);
}

/** Shows images in a pane each, with their names; resolves to whether all could be loaded. */
function show(sources, names) {
  const panes = sources.map((source, number) => {
    const pane = document.createElement("div"), image = new Image();
    pane.className = "pane";
    image.alt = names[number] ?? "Image to read";
    image.draggable = false;
    image.src = source;
    if (names[number]) pane.append(Object.assign(document.createElement("b"), { textContent: names[number] }));
    pane.append(image);
    listen(pane);
    return pane;
  });
  find("stage").replaceChildren(...panes);
  fitted();
  const decoded = panes.map((pane) => pane.querySelector("img").decode().then(() => true, () => false));
  return Promise.all(decoded).then((all) => all.every(Boolean));
}

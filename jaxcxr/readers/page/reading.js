// A reading: one item after another in the reader's order, from the first that has no answer.

const NEXT_IMAGES = 2;  // loaded beforehand
let code = "", order = [], at = 0, current = {}, ready = false, failed = false, since = null, introduced = "";

const source = (name) => STUDY.files[name] ?? `images/${name}.png`;
const item = () => STUDY.items[order[at]];
const task = () => STUDY.tasks[item().task];
const screen = (name) => ["start", "intro", "reading", "end"].forEach((each) => { find(each).hidden = each !== name; });
const shown = (name) => !find(name).hidden;
const make = (tag, text, attributes = {}) => Object.assign(document.createElement(tag), { textContent: text, ...attributes });
const done = (answers) => order.filter((name) => answers[name]?.done).length;
const complete = () => current.answer !== undefined && (!task().confidence || current.confidence !== undefined);

/** Counts the time that the image is in sight. */
function clock(runs) {
  if (since !== null) current.ms = (current.ms ?? 0) + performance.now() - since;
  since = runs && ready && shown("reading") && document.visibilityState === "visible" ? performance.now() : null;
}

function store() {
  if (!order[at]) return;
  clock(true);
  warn(keep(code, order[at], current));
}

function warn(works) {
  find("warning").hidden = works;
  find("warning").textContent = "This browser keeps nothing: a closed page loses the answers. Export them before you close it.";
}

function begin(typed) {
  const known = typed.trim().toUpperCase();
  if (!Object.hasOwn(STUDY.orders, known)) {
    find("progress-of-code").textContent = "This study has no such reader code. Check it, or ask who sent you the study.";
    return;
  }
  code = known;
  order = STUDY.orders[code];
  const answers = answersOf(code), first = order.findIndex((name) => !answers[name]?.done);
  introduced = "";
  if (first < 0) finish();
  else open(first);
}

/** Shows item number `index`, after an introduction where a task begins. */
function open(index) {
  at = index;
  current = { ...answersOf(code)[order[at]] };
  ready = failed = false;
  if (introduced !== item().task) return introduce();
  screen("reading");
  const { images, text, finding } = item(), index_ = at;
  find("bar").max = order.length;
  find("bar").value = done(answersOf(code));
  find("count").textContent = `${at + 1} of ${order.length}`;
  find("question").textContent = question(task(), finding);
  find("text").textContent = text ?? "";
  find("text").hidden = !text;
  find("failed").hidden = true;
  offer();
  show(images.map(source), images.length > 1 ? task().choices.map((choice) => choice.label) : []).then((loaded) => {
    if (at !== index_) return;
    ready = loaded;
    failed = !loaded;
    find("failed").hidden = loaded;
    clock(true);
    mark();
  });
  for (const name of order.slice(at + 1, at + 1 + NEXT_IMAGES)) {
    for (const each of STUDY.items[name].images) new Image().src = source(each);
  }
  find("stage").focus();
}

const question = (of, finding) => of.question.replace("{finding}", finding ?? "…");

function introduce() {
  const names = Object.keys(STUDY.tasks), number = names.indexOf(item().task);
  const left = order.filter((name) => STUDY.items[name].task === item().task).length;
  find("part").textContent = `Part ${number + 1} of ${names.length}, ${left} ${task().images > 1 ? "pairs" : "images"}`;
  find("task-title").textContent = task().title;
  find("task-question").textContent = question(task());
  const keys = task().choices.map((choice) => [choice.key.toUpperCase(), choice.label]);
  list("task-answers", task().confidence ? [...keys, ["1 – 5", "how sure you are, from a guess to certain"]] : keys);
  introduced = item().task;
  screen("intro");
  find("go").focus();
}

const list = (id, rows) => find(id).replaceChildren(...rows.map(([key, label]) => {
  const term = make("dt", "");
  term.append(make("kbd", key));
  const row = make("div", "");
  row.append(term, make("dd", label));
  return row;
}));

/** The buttons of the answers. */
function offer() {
  const radio = (label, key, choose) => {
    const button = make("button", label, { onclick: () => { choose(); find("stage").focus(); } });
    button.setAttribute("role", "radio");
    if (key) button.append(make("kbd", key.toUpperCase()));
    return button;
  };
  find("choices").replaceChildren(
    ...task().choices.map(({ value, label, key }) => radio(label, key, () => answer({ answer: value }))),
  );
  find("levels").replaceChildren(
    ...STUDY.confidence.map((level) => radio(String(level), "", () => answer({ confidence: level }))),
  );
  find("confidence").hidden = !task().confidence;
  mark();
}

function answer(part) {
  if (!ready) return;
  Object.assign(current, part);
  store();
  mark();
}

/** Marks what is chosen. */
function mark() {
  const check = (id, chosen) => [...find(id).children].forEach((button, number) => {
    button.setAttribute("aria-checked", number === chosen);
    button.disabled = !ready;
  });
  const chosen = task().choices.findIndex((choice) => choice.value === current.answer);
  check("choices", chosen);
  check("levels", STUDY.confidence.indexOf(current.confidence));
  document.querySelectorAll(".pane").forEach((pane, number) => {
    pane.classList.toggle("chosen", task().images > 1 && number === chosen);
  });
  find("next").disabled = !complete() && !failed;
  find("back").disabled = at === 0;
}

function next() {
  if (!complete() && !failed) return;
  if (complete()) {
    current.done = true;
    store();
  }
  clock(false);
  if (at + 1 < order.length) open(at + 1);
  else finish();
}

function back() {
  if (shown("end")) return open(order.length - 1);
  if (at === 0) return;
  store();
  clock(false);
  introduced = STUDY.items[order[at - 1]].task;
  open(at - 1);
}

function leave() {
  store();
  clock(false);
  ready = false;
  screen("start");
  greet();
}

function finish() {
  const count = done(answersOf(code));
  at = order.length;
  find("end-title").textContent = count === order.length ? "All read. Thank you." : `${count} of ${order.length} are answered`;
  find("end-text").textContent = "Export the file, and send it to who gave you the study.";
  find("csv").value = toCsv(code);
  screen("end");
  find("export").focus();
}

function greet() {
  find("code").value = code || lastCode();
  say();
  find("code").focus();
}

function say() {
  const typed = find("code").value.trim().toUpperCase();
  const known = Object.hasOwn(STUDY.orders, typed);
  const answers = known ? answersOf(typed) : {}, all = known ? STUDY.orders[typed] : [];
  const count = all.filter((name) => answers[name]?.done).length;
  find("progress-of-code").textContent = count ? `${count} of ${all.length} are answered; you resume there.` : "";
  find("enter").querySelector("button").firstChild.textContent = count ? "Resume " : "Begin ";
}

const typing = (target) => target.matches("input, textarea");
const WINDOW = 8, STEP = 40;
const KEYS = {
  i: ["Invert", invert],
  o: ["1:1, a pixel of the image on one of the display", oneToOne],
  0: ["Fit, and the full window", fitted],
  "+": ["Larger", () => zoomBy(1.25)],
  "-": ["Smaller", () => zoomBy(0.8)],
  ArrowLeft: ["Narrower window; with Shift, move", (shift) => (shift ? pan(STEP, 0) : windowBy(-WINDOW, 0))],
  ArrowRight: ["Wider window; with Shift, move", (shift) => (shift ? pan(-STEP, 0) : windowBy(WINDOW, 0))],
  ArrowUp: ["Brighter; with Shift, move", (shift) => (shift ? pan(0, STEP) : windowBy(0, -WINDOW))],
  ArrowDown: ["Darker; with Shift, move", (shift) => (shift ? pan(0, -STEP) : windowBy(0, WINDOW))],
  Enter: ["Next", next],
  Backspace: ["Back", back],
  s: ["Export CSV", () => download(code)],
  h: ["Keys", () => find("help").showModal()],
  x: ["Stop for now", leave],
  ...Object.fromEntries(PRESETS.map(({ key, name, ...window }) => [key, [`Window: ${name.toLowerCase()}`, () => change(window)]])),
};

function onKey(event) {
  const { key, target } = event, pressed = key.length === 1 ? key.toLowerCase() : key;
  if (event.ctrlKey || event.metaKey || event.altKey || typing(target) || find("help").open) return;
  if (target.matches("button, summary") && ["Enter", " "].includes(key)) return;  // presses it
  if (shown("end") && ["s", "Backspace"].includes(pressed)) KEYS[pressed][1]();
  if (!shown("reading")) return;
  const choice = task().choices.find((each) => each.key === pressed);
  const level = task().confidence ? STUDY.confidence.find((each) => String(each) === pressed) : undefined;
  if (choice) answer({ answer: choice.value });
  else if (level) answer({ confidence: level });
  else if (pressed === "=") zoomBy(1.25);
  else if (Object.hasOwn(KEYS, pressed)) KEYS[pressed][1](event.shiftKey);
  else return;
  event.preventDefault();
}

function build() {
  find("title").textContent = STUDY.title;
  const counts = Object.keys(STUDY.tasks).map((name) => {
    const count = Object.values(STUDY.items).filter((each) => each.task === name).length;
    return `${STUDY.tasks[name].title.toLowerCase()}: ${count}`;
  });
  find("amount").textContent = counts.join(" · ");
  find("presets").replaceChildren(...PRESETS.map(({ key, name, ...window }) => (
    make("button", name, { title: `${name} (${key.toUpperCase()})`, onclick: () => change(window) })
  )));
  const names = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Backspace: "⌫" };
  const answers = [["F  J", "The first or the second answer"], ["1 – 5", "An answer of a scale, or how sure you are"]];
  const pointer = [["drag", "Window and level"], ["Shift drag", "Move; so do the right button and two fingers"], ["wheel", "Zoom"]];
  const rows = Object.entries(KEYS).map(([key, [label]]) => [names[key] ?? (key.length === 1 ? key.toUpperCase() : key), label]);
  list("all-keys", [...answers, ...rows, ...pointer]);
  const clicks = {
    invert, one: oneToOne, fit: fitted, in: () => zoomBy(1.25), out: () => zoomBy(0.8), back, next, leave, again: back,
    save: () => download(code), export: () => download(code), keys: () => find("help").showModal(), go: () => open(at),
  };
  for (const [id, click] of Object.entries(clicks)) find(id).addEventListener("click", () => click());
  find("reading").addEventListener("click", (event) => {
    if (event.detail && event.target.closest(".tools")) find("stage").focus();  // of a pointer: keys are the image's again
  });
  find("enter").addEventListener("submit", (event) => {
    event.preventDefault();
    begin(find("code").value);
  });
  find("code").addEventListener("input", say);
  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => { if (shown("reading")) store(); });
  window.addEventListener("pagehide", () => { if (shown("reading")) store(); });
  window.addEventListener("resize", () => { if (shown("reading")) paint(); });
  warn(keeps());
  screen("start");
  greet();
}

build();

// What is kept of a reading, in this browser alone: answers by item, each at once.

const place = (code) => `jaxcxr-readers/${STUDY.study}/${code}`;
const LAST = `jaxcxr-readers/${STUDY.study}`;
let kept = {};  // where the browser keeps nothing, until the page is closed

/** Whether the browser keeps what is written. */
function keeps() {
  try {
    localStorage.setItem(`${LAST}-test`, "1");
    localStorage.removeItem(`${LAST}-test`);
    return true;
  } catch {
    return false;
  }
}

/** The answers of a reader: by item {answer, confidence, ms, done}. What is damaged is left out. */
function answersOf(code) {
  let found = kept[code];
  try {
    found = JSON.parse(localStorage.getItem(place(code))) ?? found;
  } catch { /* of another program, or not kept */ }
  const known = Object.entries(found ?? {}).filter(([item, one]) => STUDY.items[item] && typeof one === "object" && one);
  return Object.fromEntries(known);
}

/** Keeps one answer beside those that are there, which another tab may have written. */
function keep(code, item, answer) {
  kept[code] = { ...answersOf(code), [item]: { ...answer } };
  try {
    localStorage.setItem(place(code), JSON.stringify(kept[code]));
    localStorage.setItem(LAST, code);
    return true;
  } catch {
    return false;
  }
}

function lastCode() {
  try {
    return localStorage.getItem(LAST) ?? "";
  } catch {
    return "";
  }
}

/** The answers that are complete, as CSV in the order of reading. */
function toCsv(code) {
  const answers = answersOf(code), lines = ["study,reader,position,item,task,answer,confidence,ms"];
  for (const [number, item] of STUDY.orders[code].entries()) {
    const { answer, confidence, ms, done } = answers[item] ?? {};
    if (done) {
      const cells = [STUDY.study, code, number + 1, item, STUDY.items[item].task, answer, confidence ?? "", Math.round(ms)];
      lines.push(cells.join(","));
    }
  }
  return lines.join("\n") + "\n";
}

function download(code) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([toCsv(code)], { type: "text/csv" }));
  link.download = `readers-${STUDY.study}-${code}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

"use strict";
// Tables of the class "rows": a button in each head sorts by its column, and a field above keeps the rows that have
// every word that is typed. Without scripts the tables are as they are.

const missing = (cell) => (cell.dataset.value ?? cell.textContent.trim()) === "";

function order(first, second) {
  return "value" in first.dataset
    ? Number(first.dataset.value) - Number(second.dataset.value)
    : first.textContent.localeCompare(second.textContent, "en", { numeric: true });
}

function sort(body, column, direction) {
  const cells = [...body.rows].map((row) => row.cells[column]);
  const known = cells.filter((cell) => !missing(cell));
  known.sort((first, second) => direction * order(first, second));
  const ordered = [...known, ...cells.filter(missing)];  // what is missing comes last, upwards and downwards
  body.append(...ordered.map((cell) => cell.parentElement));
}

function addButtons(table) {
  const heads = [...table.tHead.rows[0].cells];
  for (const head of heads.filter((cell) => cell.tagName === "TH")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(table.tBodies[0], head.cellIndex, up ? 1 : -1);
    });
  }
}

function addFilter(table) {
  const scroll = table.parentElement;
  const rows = [...table.tBodies[0].rows].map((row) => [
    row,
    [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase(),
  ]);
  const filter = document.createElement("p"), label = document.createElement("label");
  const field = document.createElement("input"), count = document.createElement("output");
  filter.className = "filter";
  field.type = "search";
  count.textContent = `${rows.length} rows`;
  label.append("Filter ", field);
  filter.append(label, count);
  scroll.before(filter);
  field.setAttribute("aria-label", `Filter: ${scroll.getAttribute("aria-label")}`);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const [row, text] of rows) row.hidden = !words.every((word) => text.includes(word));
    const left = rows.filter(([row]) => !row.hidden).length;
    count.textContent = left < rows.length ? `${left} of ${rows.length} rows` : `${rows.length} rows`;
  });
}

for (const table of document.querySelectorAll("table.rows")) {
  addButtons(table);
  addFilter(table);
}

"use strict";
// Charts. Colours are CSS variables, which follow the colour scheme.
const specs = JSON.parse(document.getElementById("specs").textContent);
const axis = {
  domainColor: "var(--line)", gridColor: "var(--grid)", tickColor: "var(--line)", labelColor: "var(--muted)",
  titleColor: "var(--muted)", titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12, titlePadding: 8,
};
const config = {
  background: "transparent", font: "system-ui, sans-serif", view: { stroke: null }, axis,
  autosize: { type: "fit-x", contains: "padding" },
};
const drawn = Object.entries(specs).map(([id, spec]) =>
  vegaEmbed(document.getElementById(id), spec, { mode: "vega-lite", renderer: "svg", actions: false, config }));
Promise.all(drawn).then(() => { document.documentElement.dataset.ready = "yes"; });

// Tables: a click on a column header sorts by that column, a second click reverses the order.
function key(cell) {
  const text = cell.textContent.trim().replaceAll(",", "").replace("\u2212", "-");
  return { text, number: text === "" ? NaN : parseFloat(text) };
}
function compare(a, b) {
  if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "");
  return Number.isNaN(a.number) || Number.isNaN(b.number) ? a.text.localeCompare(b.text) : a.number - b.number;
}
for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const isText = head.classList.contains("text"), last = head.getAttribute("aria-sort");
    // The first click sorts numbers from the largest, and text from A to Z.
    const falling = last === null ? !isText : last === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => ({ row, value: key(row.cells[head.cellIndex]) }));
    rows.sort((a, b) => compare(a.value, b.value) * (falling ? -1 : 1));
    body.append(...rows.map(({ row }) => row));
  });
}

// Sort the tables by a click on a heading, and bring one run's curves to the front. The page reads well without it.
"use strict";
document.documentElement.classList.add("sortable");

const asButton = (element) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...element.childNodes);
  element.append(button);
  return button;
};

for (const table of document.querySelectorAll("table.board:not(.budget)")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const numeric = heading.classList.contains("num");
    asButton(heading).addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // unknown: last
        const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
        return up ? order : -order;
      };
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}

const curves = [...document.querySelectorAll("svg.chart g[id*='-run-']")];
let pinned = null;
const show = (run) => {
  for (const curve of curves) curve.classList.toggle("dim", run !== null && !curve.id.endsWith("-run-" + run));
};
const buttons = [...document.querySelectorAll(".curves [data-run]")].map((item) => {
  const run = item.dataset.run, button = asButton(item.querySelector("span"));
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    pinned = pinned === run ? null : run;
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button && pinned !== null));
    show(pinned);
  });
  return button;
});
for (const item of document.querySelectorAll("[data-run]")) {
  item.addEventListener("pointerenter", () => show(item.dataset.run));
  item.addEventListener("pointerleave", () => show(pinned));
}

"use strict";

// Filter boxes and sortable headers of the tables. Without scripts the page shows everything, in its first order.
for (const table of document.querySelectorAll("table[data-tools]")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const find = document.querySelector(`[data-for="${table.id}"]`);
  const box = find.querySelector("input");
  const count = find.querySelector("output");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      shown += row.hidden ? 0 : 1;
    });
    count.textContent = `${shown} of ${rows.length}`;
  };
  box.addEventListener("input", filter);
  find.hidden = false;
  filter();

  const order = new Intl.Collator(undefined, { numeric: true }).compare;
  table.querySelectorAll("thead button").forEach((button) => {
    const header = button.parentElement;
    const column = header.cellIndex;
    button.addEventListener("click", () => {
      const down = header.ariaSort === "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      header.ariaSort = down ? "descending" : "ascending";
      const numeric = header.classList.contains("n");
      const key = (row) => {
        const cell = row.cells[column];
        return numeric ? Number(cell.dataset.v || NaN) : cell.textContent.trim();
      };
      const keyed = rows.map((row) => [key(row), row]);
      keyed.sort(([a], [b]) => {
        if (!numeric) return down ? order(b, a) : order(a, b);
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // empty cells stay last
        return a === b ? 0 : (a < b) === down ? 1 : -1;
      });
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

// A link to something inside closed details opens them.
const reveal = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  target.scrollIntoView({ block: "nearest" });
  (target.tagName === "DETAILS" ? target.firstElementChild : target).focus({ preventScroll: true });
};
addEventListener("hashchange", reveal);
reveal();

// The strip is one stop for the keyboard; arrows go along it.
for (const strip of document.querySelectorAll(".strip")) {
  const cells = [...strip.querySelectorAll("a")];
  cells.forEach((cell, i) => (cell.tabIndex = i ? -1 : 0));
  strip.addEventListener("keydown", (event) => {
    const here = cells.indexOf(document.activeElement);
    const step = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: cells.length - 1 }[event.key];
    const next = cells[step];
    if (!next) return;
    event.preventDefault();
    cells[here].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

// Where the style alone can't open details on paper.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    part.dataset.closed = "";
  }
});
addEventListener("afterprint", () => {
  for (const part of document.querySelectorAll("details[data-closed]")) {
    part.open = false;
    delete part.dataset.closed;
  }
});

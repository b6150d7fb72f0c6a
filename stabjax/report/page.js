"use strict";

// Columns of a table: a heading is a button, aria-sort says which column is sorted, and how.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const rows = [...body.rows];
  headings.forEach((heading, column) => {
    heading.firstElementChild.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      for (const each of headings) each.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const order = rows.map((row, place) => [key(row.cells[column]), place, row]);
      order.sort((a, b) => compare(a[0], b[0], ascending) || a[1] - b[1]);
      body.append(...order.map(([, , row]) => row));
    });
  });
}

function key(cell) {
  const value = cell.dataset.value;
  if (value === undefined) return cell.textContent;
  return value === "" ? null : Number(value);
}

// What is not defined stands last, whatever the direction.
function compare(a, b, ascending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  return ascending ? order : -order;
}

// Rows by a part of their name or kind.
for (const field of document.querySelectorAll("input[type=search]")) {
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of document.querySelectorAll("table.sortable tbody tr")) {
      const text = `${row.cells[1].textContent} ${row.cells[2].textContent}`.toLowerCase();
      row.hidden = !text.includes(wanted);
    }
  });
}

// The column of the figure under the pointer, or under a finger, is named below the figure.
const readout = document.getElementById("readout");
let shown = null;
for (const column of document.querySelectorAll("rect.column")) {
  const show = () => {
    shown?.classList.remove("shown");
    shown = column;
    column.classList.add("shown");
    readout.textContent = column.querySelector("title").textContent;
  };
  column.addEventListener("pointerenter", show);
  column.addEventListener("click", show);
}

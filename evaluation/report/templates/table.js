"use strict";
// The long table can be searched and sorted; without scripts it is a plain table.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const split = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
  const words = rows.map((row) => [...row.cells].flatMap((cell) => split(cell.textContent)));
  const search = table.closest("section").querySelector(".search");
  const count = search.querySelector("output");
  const input = search.querySelector("input");
  const show = () => {
    const wanted = split(input.value);
    let shown = 0;
    rows.forEach((row, index) => {
      const fits = wanted.every((start) => words[index].some((word) => word.startsWith(start)));
      row.hidden = !fits;
      shown += fits;
    });
    count.textContent = `${shown} of ${rows.length}`;
  };
  input.addEventListener("input", show);
  search.hidden = false;
  show();

  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    const value = (row) => row.cells[column].dataset.value;
    button.addEventListener("click", () => {
      const numbers = head.dataset.kind === "number";
      // Numbers start with the largest, names with the first letter.
      const first = numbers ? "descending" : "ascending";
      const other = numbers ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      rows
        .map((row, index) => ({ row, index, words: words[index], value: value(row) }))
        .sort((one, two) => {
          if (!numbers) return sign * one.value.localeCompare(two.value);
          // What has no number stays at the end.
          if (one.value === "" || two.value === "") return (one.value === "") - (two.value === "");
          return sign * (one.value - two.value);
        })
        .forEach((entry, index) => {
          rows[index] = entry.row;
          words[index] = entry.words;
        });
      body.append(...rows);
    });
  });
}

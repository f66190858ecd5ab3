"use strict";
// Makes the table of interactions searchable and sortable; without scripts it is a plain table.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const split = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
  const words = rows.map((row) => [...row.cells].flatMap((cell) => split(cell.textContent)));
  const search = table.closest("section").querySelector(".search");
  const count = search.querySelector("output");
  const input = search.querySelector("input");
  const filter = () => {
    const prefixes = split(input.value);
    let shown = 0;
    rows.forEach((row, index) => {
      const matches = prefixes.every((prefix) => words[index].some((word) => word.startsWith(prefix)));
      row.hidden = !matches;
      shown += matches;
    });
    count.textContent = `${shown} of ${rows.length}`;
  };
  input.addEventListener("input", filter);
  search.hidden = false;
  filter();

  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    const value = (row) => row.cells[column].dataset.value;
    button.addEventListener("click", () => {
      const numbers = header.dataset.kind === "number";
      // The first click sorts numbers in falling and names in alphabetical order.
      const first = numbers ? "descending" : "ascending";
      const reverse = numbers ? "ascending" : "descending";
      const order = header.getAttribute("aria-sort") === first ? reverse : first;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      rows
        .map((row, index) => ({ row, index, words: words[index], value: value(row) }))
        .sort((a, b) => {
          if (!numbers) return sign * a.value.localeCompare(b.value);
          // Rows without a number are always last.
          if (a.value === "" || b.value === "") return (a.value === "") - (b.value === "");
          return sign * (a.value - b.value);
        })
        .forEach((entry, index) => {
          rows[index] = entry.row;
          words[index] = entry.words;
        });
      body.append(...rows);
    });
  });
}

"use strict";
const said = document.getElementById("said");

function say(text) {
  said.textContent = "";
  setTimeout(() => { said.textContent = text; }, 50);
}

// Sorting: numbers by data-value, names by their text; what is empty comes last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = column === 0 ? x.localeCompare(y) : Number(x) - Number(y);
      return down ? -order : order;
    });
    body.append(...rows);
    say(`sorted by ${head.textContent.trim()}, ${down ? "descending" : "ascending"}`);
  }));
}

// Copying; where the clipboard is closed to pages, by a selection.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

for (const button of document.querySelectorAll("button.copy")) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    const done = await copy(document.getElementById(button.dataset.copies).textContent);
    button.textContent = done ? "Copied" : "Not copied: select the text instead";
    say(button.textContent);
    setTimeout(() => { button.textContent = label; }, 1500);
  });
}

// Pictures
const pictures = document.querySelector("table.pictures");
if (pictures) {
  const rows = [...pictures.tBodies[0].rows];
  const at = (row, column) => rows[row]?.cells[column + 1]?.querySelector("img");
  const sharpen = (img) => {
    const mark = () => img.classList.toggle("small-one", img.naturalWidth <= 128);
    if (img.complete) mark(); else img.addEventListener("load", mark);
  };
  pictures.querySelectorAll("img").forEach(sharpen);

  const toggle = document.getElementById("difference");
  const base = toggle ? Number(toggle.dataset.base) : null;
  let differing = false;

  function over(img, column) {
    const other = base === null ? null : at(base, column);
    const pixels = document.createElement("span");
    pixels.className = "pixels";
    img.replaceWith(pixels);
    pixels.append(img);
    if (other) {
      const copied = document.createElement("img");
      copied.src = other.src;
      copied.alt = "";
      pixels.append(copied);
      sharpen(copied);
    }
  }

  toggle?.addEventListener("click", () => {
    differing = !differing;
    toggle.setAttribute("aria-pressed", String(differing));
    pictures.classList.toggle("differing", differing);
    rows.forEach((row, i) => [...row.querySelectorAll(".zoom")].forEach((button) => {
      if (i === base) return;
      const img = button.querySelector("img");
      if (differing) over(img, Number(button.dataset.column));
      else button.replaceChildren(img);
    }));
    if (dialog.open) enlarge(shown);
  });

  const dialog = document.getElementById("large");
  const place = dialog.querySelector(".enlarged");
  const heads = [...pictures.tHead.rows[0].cells].slice(1);
  let shown = 0;

  function enlarge(column) {
    shown = (column + heads.length) % heads.length;
    document.getElementById("large-title").textContent = heads[shown].textContent.trim();
    place.classList.toggle("differing", differing);
    place.replaceChildren(...rows.flatMap((row, i) => {
      const img = at(i, shown);
      if (!img) return [];
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      const large = document.createElement("img");
      large.src = img.src;
      large.alt = img.alt;
      caption.textContent = row.cells[0].textContent;
      figure.append(large, caption);
      sharpen(large);
      if (differing && i !== base) over(large, shown);
      return [figure];
    }));
    if (!dialog.open) dialog.showModal();
  }

  pictures.addEventListener("click", (event) => {
    const button = event.target.closest(".zoom");
    if (button) enlarge(Number(button.dataset.column));
  });
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.querySelectorAll("[data-step]").forEach((button) => button.addEventListener(
    "click", () => enlarge(shown + Number(button.dataset.step))));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") enlarge(shown - 1);
    if (event.key === "ArrowRight") enlarge(shown + 1);
  });
}

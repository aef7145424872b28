"use strict";
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// Colours: data-places has a cell's place on the scale of each measure, in per cent, or "=" or "-".
function paint(measure) {
  for (const cell of all("[data-places]")) {
    const place = cell.dataset.places.split(" ")[cell.classList.contains("swatch") ? 0 : measure];
    cell.classList.toggle("same", place === "=");
    cell.classList.toggle("unknown", place === "-");
    cell.style.setProperty("--t", place === "=" || place === "-" ? 0 : place / 100);
  }
  all(".scale").forEach((scale, i) => { scale.hidden = i !== measure; });
}
all("input[name=measure]").forEach((input, i) => {
  input.addEventListener("change", () => paint(i));
  if (input.checked || i === 0) paint(i);
});

// What a cell is: shown while a mouse is over it, after a tap, and as arrow keys move through a map.
const tip = document.getElementById("tip");
let shown = null;

function hide() {
  shown?.classList.remove("on");
  shown = null;
  tip.hidden = true;
}

function show(cell) {
  hide();
  shown = cell;
  cell.classList.add("on");
  tip.replaceChildren(...cell.dataset.says.split("\n").map((line) => {
    const text = document.createElement("p");
    text.textContent = line;
    return text;
  }));
  tip.hidden = false;
  tip.style.left = tip.style.top = "0";
  const at = cell.getBoundingClientRect(), size = tip.getBoundingClientRect(), gap = 10, edge = 8;
  const wide = document.documentElement.clientWidth, aside = at.right + gap + size.width + edge <= wide;
  const above = at.top - gap - size.height, below = at.bottom + gap;
  const left = aside ? at.right + gap : Math.max(edge, Math.min(at.left, wide - size.width - edge));
  const top = aside
    ? Math.max(edge, Math.min(at.top, innerHeight - size.height - edge))
    : below + size.height > innerHeight && above > 0 ? above : below;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${top + scrollY}px`;
}

const cellOf = (event) => event.target.closest(".cell") ?? event.target.closest(".tile")?.querySelector(".cell");

for (const map of all(".map, .tiles")) {
  const cells = all(".cell", map);
  map.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "mouse") return;
    const cell = cellOf(event);
    if (cell) show(cell); else hide();
  });
  map.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  map.addEventListener("click", (event) => { const cell = cellOf(event); if (cell) show(cell); });
  map.addEventListener("focus", () => { if (map.matches(":focus-visible")) show(cells[0]); });
  map.addEventListener("blur", hide);
  map.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    // where cells lie on the screen decides, so that arrows do what they show when rows and columns change places
    const across = { ArrowLeft: -1, ArrowRight: 1 }[event.key] || 0, down = { ArrowUp: -1, ArrowDown: 1 }[event.key] || 0;
    if (!across && !down) return;
    event.preventDefault();
    const from = (cells.includes(shown) ? shown : cells[0]).getBoundingClientRect();
    const ahead = cells.map((cell) => {
      const to = cell.getBoundingClientRect(), x = to.left - from.left, y = to.top - from.top;
      return { cell, far: x * across + y * down, aside: Math.abs(across ? y : x) };
    }).filter((each) => each.far > 1 && each.aside < 2).sort((a, b) => a.far - b.far);
    if (ahead.length) {
      ahead[0].cell.scrollIntoView({ block: "nearest", inline: "nearest" });
      show(ahead[0].cell);
    }
  });
}
document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".map, .tiles")) hide(); });
addEventListener("resize", hide);

// Tables: sorted by a click on a column's head, searched, and at first only as long as people read.
const FEW = 50;
for (const table of all("table")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = all("th", table);
  const find = table.parentElement.querySelector("input[type=search]");
  const count = table.parentElement.querySelector("output"), more = table.parentElement.querySelector(".more");
  let whole = !more;

  const refresh = () => {
    const words = (find?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const row of body.rows) {
      const text = row.cells[0].textContent.toLowerCase(), fits = words.every((word) => text.includes(word));
      found += fits;
      row.hidden = !fits || (!whole && found > FEW);
    }
    if (count) count.textContent = `${found} of ${rows.length}`;
    if (more) {
      more.hidden = whole || found <= FEW;
      more.textContent = `Show all ${found}`;
    }
  };

  heads.forEach((head, i) => head.querySelector("button")?.addEventListener("click", () => {
    const numbers = head.classList.contains("number"), was = head.getAttribute("aria-sort");
    const order = was === "none" ? (numbers ? "descending" : "ascending") : was === "ascending" ? "descending" : "ascending";
    heads.forEach((other) => { if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", other === head ? order : "none"); });
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => (numbers ? parseFloat(row.cells[i].dataset.v) : row.cells[i].textContent);
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (!numbers) return sign * x.localeCompare(y, "en", { numeric: true });
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // no number: last
      return x === y ? 0 : sign * (x < y ? -1 : 1);
    };
    body.append(...[...rows].sort(compare));
    refresh();
  }));
  find?.addEventListener("input", refresh);
  more?.addEventListener("click", () => { whole = true; refresh(); });
  refresh();
}

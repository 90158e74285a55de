"use strict";
// Sort, filter, colour and copy the overview. Every number and every escaped text was written by the report.

const table = document.getElementById("matrix");
const body = table?.tBodies[0];
const at = (id) => document.getElementById(id);
const isChecked = (id) => Boolean(at(id)?.checked);
const heads = table ? [...table.querySelectorAll("th[data-column]")] : [];
const rows = table ? [...body.rows] : [];

function say(words) {
  if (at("said")) at("said").textContent = words;
}

function counted(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}

/* What is shown */

function isShownColumn(head) {
  const boxes = [...document.querySelectorAll("#tasks input")];
  const task = boxes.find((box) => box.value === head.dataset.group);
  return (!task || task.checked) && (!head.classList.contains("more") || isChecked("all-metrics"));
}

function isShownRow(row) {
  const wanted = at("find").value.trim().toLowerCase();
  const isWanted = row.cells[0].textContent.toLowerCase().includes(wanted);
  return isWanted && (!row.classList.contains("published") || isChecked("literature"));
}

function shownColumns() {
  return heads.filter((head) => !head.hidden).map((head) => Number(head.dataset.column));
}

function show() {
  heads.forEach((head, column) => {
    head.hidden = !isShownColumn(head);
    rows.forEach((row) => (row.cells[column + 1].hidden = head.hidden));
  });
  for (const group of table.querySelectorAll("th[scope=colgroup]")) {
    const own = heads.filter((head) => head.dataset.group === group.dataset.group && !head.hidden);
    group.hidden = own.length === 0;
    group.colSpan = own.length || 1;
  }
  rows.forEach((row) => (row.hidden = !isShownRow(row)));
  table.classList.toggle("with-differences", isChecked("differences"));
  say(`${counted(rows.filter((row) => !row.hidden).length, "row")}, ${counted(shownColumns().length, "column")}`);
  hint();
}

/* Fade the edge of a table behind which there is more. */
function hint() {
  for (const area of document.querySelectorAll(".scroll")) {
    area.classList.toggle("is-cut", area.scrollLeft + area.clientWidth < area.scrollWidth - 1);
  }
}

/* Sorting */

function keyOf(row, sort) {
  if (sort === "name") return row.cells[0].textContent.trim().toLowerCase();
  const cell = sort === "rank" ? row.cells[heads.length + 1] : row.cells[Number(sort) + 1];
  return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
}

function compareKeys(a, b) {
  return typeof a === "string" ? a.localeCompare(b) : a - b;
}

function isBestFirst(head, sort) {
  return sort !== "name" && sort !== "rank" && !("lower" in head.dataset) ? "descending" : "ascending";
}

function sortBy(button) {
  const head = button.closest("th");
  const sort = button.dataset.sort;
  const first = isBestFirst(head, sort);
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  table.querySelectorAll("[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const keyed = rows.map((row) => [keyOf(row, sort), row]);
  keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compareKeys(a, b)));
  body.append(...keyed.map(([, row]) => row));
  say(`sorted by ${button.getAttribute("aria-label")?.replace("sort by ", "") ?? button.textContent}, ${order}`);
}

/* Differences to the chosen row: the report wrote the text of every one */

const chosen = table ? JSON.parse(at("chosen").textContent) : null;
const numbers = [...document.querySelectorAll("td[data-of]")].map((cell) => {
  const [row, column] = cell.dataset.of.split(" ");
  const small = cell.querySelector(".difference, .words") ?? cell.appendChild(document.createElement("small"));
  small.className ||= cell.closest("#matrix") ? "difference" : "words";
  return { cell, row, column, small, nodes: [...small.childNodes], title: cell.title, isNoise: "noise" in cell.dataset };
});
const named = [...document.querySelectorAll(".to")].map((node) => {
  return { node, name: node.querySelector("b").textContent, isShown: !node.hidden };
});
const madeOfReport = at("made")?.textContent;

function differ() {
  const option = at("baseline").selectedOptions[0];
  const isOwn = !option.value || option.defaultSelected; // the report's baseline
  const to = chosen.to[option.value];
  for (const one of numbers) {
    if (isOwn) putBack(one);
    else write(one, to?.[one.column]?.[one.row] ?? ["", 0, 0], option.label);
  }
  for (const { node, name, isShown } of named) {
    node.querySelector("b").textContent = isOwn ? name : option.label;
    node.hidden = isOwn ? !isShown : !to;
  }
  if (at("made")) at("made").textContent = isOwn ? madeOfReport : chosen.said[option.value] ?? "";
  at("tested").hidden = !isOwn && !to;
  at("untested").hidden = isOwn || Boolean(to);
}

function putBack({ cell, small, nodes, title, isNoise }) {
  small.replaceChildren(...nodes);
  cell.title = title;
  cell.toggleAttribute("data-noise", isNoise);
}

function write({ cell, small }, [text, isNoise, place], name) {
  const why = chosen.reasons[place];
  cell.toggleAttribute("data-noise", Boolean(isNoise));
  if (small.className === "words") {
    small.textContent = text && text + (why ? ` (no interval: ${why})` : "") + (isNoise ? ", within the noise" : "");
    return;
  }
  const [gap, ...interval] = text.split(/ (?=\[)/);
  const span = document.createElement("span");
  span.textContent = interval.join("") + (isNoise ? " noise" : "");
  small.replaceChildren(...(text ? [`${gap} `, span] : []));
  const difference = text && `; ${text} to ${name}${isNoise ? ", within the noise" : ""}`;
  cell.title = cell.dataset.is + difference + (why && `; ${text && "no interval: "}${why}`);
}

/* Colours: each column's difference to the baseline, as a share of its largest */

function colour() {
  const base = rows.find((row) => row.dataset.row === at("baseline").value);
  rows.forEach((row) => row.classList.toggle("baseline", row === base));
  heads.forEach((head, column) => {
    const cells = rows.filter((row) => !row.classList.contains("published")).map((row) => row.cells[column + 1]);
    const of = (cell) => (cell.dataset.value === undefined ? null : Number(cell.dataset.value));
    const zero = base ? of(base.cells[column + 1]) : null;
    const gaps = cells.map((cell) => (zero === null || of(cell) === null ? 0 : of(cell) - zero));
    const largest = Math.max(...gaps.map(Math.abs));
    cells.forEach((cell, place) => {
      const isPlain = !gaps[place] || "noise" in cell.dataset;
      if (isPlain) return cell.removeAttribute("style");
      const isBetter = gaps[place] > 0 !== "lower" in head.dataset;
      cell.style.setProperty("--hue", isBetter ? "var(--better)" : "var(--worse)");
      cell.style.setProperty("--depth", `${Math.round(8 + (32 * Math.abs(gaps[place])) / largest)}%`);
    });
  });
  at("colours").hidden = !base;
}

/* Copying: the report's own cells, joined as it joins them (exports.py) */

function textOf(form, shownRows, columns) {
  const { glue, head, rows: all } = form;
  const line = (cells) =>
    glue.before_row + [cells[0], ...columns.map((c) => cells[c + 1])].join(glue.between_cells) + glue.after_row;
  const around = ([start, each, end]) => start + each.repeat(columns.length) + end;
  return (
    around(glue.before_head) + (head.length ? line(head) : "") + around(glue.after_head) +
    shownRows.map((row) => line(all[row])).join(glue.between_rows) + glue.end
  );
}

async function copy(button) {
  const form = JSON.parse(at("exports").textContent)[button.dataset.copy];
  const shown = [...body.rows].filter((row) => !row.hidden).map((row) => Number(row.dataset.row));
  const columns = shownColumns();
  if (table.querySelector("th.rank")) columns.push(heads.length);
  const text = textOf(form, shown, columns);
  const isCopied = await toClipboard(text);
  say(isCopied ? `copied ${shown.length} rows as ${button.textContent}` : "the browser refused to copy");
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  }
}

/* Drawers */

function openTarget() {
  const target = at(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
    target.querySelector("summary").focus({ preventScroll: true });
  }
}

/* A served page asks whether there are new numbers, and comes back as it was */

function remembered() {
  const controls = [...document.querySelectorAll("#controls input, #controls select")];
  const values = controls.map((one) => (one.type === "checkbox" ? one.checked : one.value));
  const open = [...document.querySelectorAll("details")].map((one) => one.open);
  return JSON.stringify({ values, open, scroll: window.scrollY });
}

function restore() {
  const { values, open, scroll } = JSON.parse(sessionStorage.getItem("state"));
  sessionStorage.removeItem("state");
  [...document.querySelectorAll("#controls input, #controls select")].forEach((one, place) => {
    if (one.type === "checkbox") one.checked = values[place] ?? one.checked;
    else one.value = values[place] ?? one.value;
  });
  [...document.querySelectorAll("details")].forEach((one, place) => (one.open = open[place] ?? one.open));
  requestAnimationFrame(() => window.scrollTo(0, scroll));
}

async function watch(version) {
  const answer = await fetch("version").catch(() => null);
  if (!answer?.ok) say("the server does not answer; this is its last page");
  if (!answer?.ok || (await answer.text()) === version) return setTimeout(watch, 2000, version);
  sessionStorage.setItem("state", remembered());
  location.reload();
}

if (table) {
  at("controls").hidden = at("copies").hidden = false;
  if (sessionStorage.getItem("state")) restore();
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("controls").addEventListener("input", () => (show(), differ(), colour()));
  table.querySelectorAll("button[data-sort]").forEach((one) => one.addEventListener("click", () => sortBy(one)));
  document.querySelectorAll("button[data-copy]").forEach((one) => one.addEventListener("click", () => copy(one)));
  show();
  differ();
  colour();
}
document.querySelectorAll(".scroll").forEach((area) => area.addEventListener("scroll", hint));
document.querySelectorAll("details").forEach((one) => one.addEventListener("toggle", hint));
window.addEventListener("resize", hint);
window.addEventListener("hashchange", openTarget);
openTarget();
if ("served" in document.documentElement.dataset) watch(document.documentElement.dataset.served);

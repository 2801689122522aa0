"use strict";
// Looking at pictures: the viewer, the step slider, A | B. Without a script the page still shows everything.
const $ = (id) => document.getElementById(id);
const viewer = $("viewer");
const shown = (element) => element && element.getClientRects().length > 0;
const panel = () => [...document.querySelectorAll(".panel")].find(shown);
const cell = (row, column) => panel()?.querySelector(`.shot[data-row="${row}"][data-column="${column}"]`);
const heads = () => [...panel().querySelectorAll(".head")];
const rows = () => [...panel().querySelectorAll(".name")];
const named = (head) => [...head.childNodes].filter((node) => !node.matches?.(".swatch, em")).map((node) => node.textContent.trim()).filter(Boolean).join(" ");
let scale = 0;
let current = null;

// --- the viewer

function figure(image, caption, room) {
  const out = document.createElement("figure");
  const copy = new Image();
  copy.src = image.src;
  copy.alt = image.alt;
  const fit = Math.min(room.width / image.naturalWidth, room.height / image.naturalHeight);
  const factor = scale || (fit > 1 ? Math.floor(fit) : fit);
  copy.width = Math.max(1, Math.round(image.naturalWidth * factor));
  copy.className = factor > 1 && Number.isInteger(factor) ? "pixels" : "";
  const text = document.createElement("figcaption");
  text.textContent = `${caption} (${factor >= 1 ? Math.round(factor) + ":1" : Math.round(100 * factor) + " %"})`;
  out.append(copy, text);
  return out;
}

function show(button) {
  current = button;
  const image = button.querySelector("img");
  const near = $(button.dataset.near)?.querySelector("img");
  if (!viewer.open) viewer.showModal();
  const box = $("viewer-body").getBoundingClientRect();
  const side = window.innerWidth > 720 || window.innerWidth > window.innerHeight;
  const room = near && side ? { width: box.width / 2 - 20, height: box.height - 50 } : near ? { width: box.width, height: box.height / 2 - 40 } : { width: box.width, height: box.height - 50 };
  $("viewer-label").textContent = image.alt;
  const told = [button.dataset.more, image.dataset.reduced && `reduced from ${image.dataset.reduced}`];
  $("viewer-more").textContent = told.filter(Boolean).join(" · ");
  $("viewer-body").replaceChildren(figure(image, "this picture", room));
  if (near) $("viewer-body").append(figure(near, `nearest training image, likeness ${button.dataset.likeness}`, room));
  for (const each of viewer.querySelectorAll("[data-scale]")) each.setAttribute("aria-pressed", +each.dataset.scale === scale);
}

// The next picture that is there, along the row or down the column.
function neighbour(button, right, down) {
  if (!button.dataset.row) {
    const all = [...document.querySelectorAll(".training .shot")];
    return all[all.indexOf(button) + right + down];
  }
  let [row, column] = [+button.dataset.row, +button.dataset.column];
  for (;;) {
    row += down;
    column += right;
    if (row < 0 || column < 0 || row >= rows().length || column >= heads().length) return null;
    const found = cell(row, column);
    if (found) return found;
  }
}

function move(right, down) {
  // On the page arrows go where they point; in the viewer left and right always go along the steps.
  if (!viewer.open && cell(0, 1)?.offsetLeft === cell(0, 0)?.offsetLeft) [right, down] = [down, right];
  const to = neighbour(viewer.open ? current : document.activeElement, right, down);
  if (to && viewer.open) show(to);
  else if (to) to.focus();
  return Boolean(to);
}

const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
document.addEventListener("keydown", (event) => {
  if (!viewer.open && !event.target.closest?.(".shot")) return;
  if (moves[event.key]) {
    if (move(...moves[event.key]) || viewer.open) event.preventDefault();
  } else if (viewer.open && { f: 1, 1: 1, 4: 1 }[event.key]) rescale(+event.key || 0);
});
function rescale(to) {
  scale = to;
  show(current);
}
document.addEventListener("click", (event) => {
  const found = (selector) => event.target.closest(selector);
  if (found(".shot")) show(found(".shot"));
  else if (found("[data-scale]")) rescale(+found("[data-scale]").dataset.scale);
  else if (found("[data-move]")) move(+found("[data-move]").dataset.move, 0);
  else if (found("#viewer-close")) viewer.close();
  else if (found(".copy")) copy(found(".copy"));
  else if (found("#play")) play();
  else if (found("#compare")) compare();
});
viewer.addEventListener("close", () => current?.isConnected && current.focus());
let from = null;
viewer.addEventListener("pointerdown", (event) => (from = event.isPrimary ? [event.clientX, event.clientY] : null));
viewer.addEventListener("pointerup", (event) => {
  const [x, y] = from ? [event.clientX - from[0], event.clientY - from[1]] : [0, 0];
  if (Math.abs(x) > 40 && Math.abs(x) > 2 * Math.abs(y)) move(x < 0 ? 1 : -1, 0);
  from = null;
});

// --- one step at a time, and two side by side

let timer = null;
let comparing = false;
function step(to) {
  const count = heads().length;
  const slider = $("step");
  slider.max = count - 1;
  slider.value = to;
  $("step-name").textContent = named(heads()[to]);
  slider.setAttribute("aria-valuetext", named(heads()[to]));
  for (const each of panel().querySelectorAll(".cell")) each.classList.toggle("now", each.querySelector(`[data-column="${to}"]`) !== null);
  const tiles = rows().map((row, i) => {
    const out = document.createElement("figure");
    const two = document.createElement("div");
    two.className = comparing ? "two" : "";
    for (const column of comparing ? [+$("other").value, to] : [to]) {
      const image = cell(i, column)?.querySelector("img");
      if (image) two.append(image.cloneNode());
    }
    for (const image of two.children) image.style.width = "100%";
    const text = document.createElement("figcaption");
    text.textContent = named(row);
    out.append(two, text);
    return out;
  });
  $("player").replaceChildren(...tiles);
  if (comparing) {
    const label = document.createElement("label");
    const cut = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 100, value: 50 });
    cut.setAttribute("aria-label", "Where the one picture ends and the other begins");
    cut.addEventListener("input", () => $("player").style.setProperty("--cut", cut.value + "%"));
    $("player").style.setProperty("--cut", "50%");
    label.append(named(heads()[+$("other").value]), cut, named(heads()[to]));
    $("player").append(label);
  }
  $("player").hidden = false;
}
function stop() {
  clearInterval(timer);
  timer = null;
  $("play")?.setAttribute("aria-pressed", "false");
}
function play() {
  if (timer) return stop();
  $("play").setAttribute("aria-pressed", "true");
  const next = () => step((+$("step").value + 1) % heads().length);
  next();
  timer = setInterval(next, 700);
}
function compare() {
  comparing = !comparing;
  $("compare").setAttribute("aria-pressed", String(comparing));
  $("with").hidden = !comparing;
  step(+$("step").value);
}

// --- copying

// Lines of a command end between its words, never after the dashes of a flag.
function wrap(code) {
  const words = code.textContent.split(" ").map((word) => Object.assign(document.createElement("i"), { textContent: word }));
  code.replaceChildren(...words.flatMap((word) => [word, " "]).slice(0, -1));
}

function copy(button) {
  const text = button.previousElementSibling;
  getSelection().selectAllChildren(text);
  const done = () => (button.textContent = "Copied");
  const old = () => document.execCommand("copy") && done();
  if (navigator.clipboard) navigator.clipboard.writeText(text.textContent).then(done, old);
  else old();
}

// --- at the start, and again when a live page has news

function begin() {
  for (const button of document.querySelectorAll(".copy")) button.hidden = false;
  document.querySelectorAll(".command code").forEach(wrap);
  for (const each of document.querySelectorAll(".panel")) {
    const first = each.querySelector(".chosen .shot") ?? each.querySelector(".shot");
    if (first) first.tabIndex = 0;
  }
  for (const each of document.querySelectorAll("fieldset input")) each.addEventListener("change", choose);
  if ($("step")) {
    document.querySelector(".player-controls").hidden = heads().length < 2;
    $("step").addEventListener("input", (event) => (stop(), step(+event.target.value)));
    $("other").addEventListener("change", () => step(+$("step").value));
    choose();
  }
}
function choose() {
  if (!$("step")) return;
  const chosen = heads().findIndex((head) => head.classList.contains("chosen"));
  const before = $("player").hidden ? (chosen < 0 ? heads().length - 1 : chosen) : Math.min(+$("step").value, heads().length - 1);
  $("step").max = heads().length - 1;
  $("step").value = before;
  $("step-name").textContent = named(heads()[before]);
  $("other").replaceChildren(...heads().map((head, i) => new Option(named(head), i)));
  if (!$("player").hidden) step(before);
}
document.addEventListener("focusin", (event) => {
  const shot = event.target.closest?.(".sheet .shot");
  if (!shot) return;
  for (const each of shot.closest(".sheet").querySelectorAll(".shot")) each.tabIndex = each === shot ? 0 : -1;
});
begin();

// --- a run that goes on: ask our own server what is new, and leave alone what someone looks at

async function news() {
  const root = document.documentElement;
  const asked = await fetch("version").catch(() => null);
  const version = asked?.ok ? await asked.text() : root.dataset.version;
  if (version === root.dataset.version || viewer.open || timer || comparing) return;
  const fresh = new DOMParser().parseFromString(await (await fetch("./")).text(), "text/html");
  const kept = [...document.querySelectorAll("details[open][id], input:checked")].map((each) => each.id);
  document.querySelector("main").replaceWith(fresh.querySelector("main"));
  document.querySelector("style").replaceWith(fresh.querySelector("style"));
  for (const id of kept) if ($(id)) $(id)[$(id).matches("details") ? "open" : "checked"] = true;
  document.title = fresh.title;
  root.dataset.version = version;
  begin();
}
if (document.documentElement.dataset.version) setInterval(news, 2000);

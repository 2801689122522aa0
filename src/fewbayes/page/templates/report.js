"use strict";
// Comfort only: enlarging pictures and moving among them. All content is on the page without it.
const viewer = document.getElementById("viewer");
const label = document.getElementById("viewer-label");
const body = document.getElementById("viewer-body");

function figure(image, width, caption) {
  const out = document.createElement("figure");
  const copy = new Image();
  copy.src = image.src;
  copy.alt = image.alt;
  copy.width = width;
  const text = document.createElement("figcaption");
  text.textContent = caption;
  out.append(copy, text);
  return out;
}

// What a sample is to be compared with: the training image it names, else the first one of the page.
function trainingImage(button) {
  const near = document.getElementById(button.dataset.near);
  if (!near) return document.querySelector("#references img");
  const copy = new Image();
  copy.src = near.getAttribute("href");
  copy.alt = "nearest training image";
  return copy;
}

function show(button) {
  const image = button.querySelector("img");
  const training = trainingImage(button);
  const large = Math.max(1, Math.min(4, Math.floor(1024 / image.naturalWidth)));
  label.textContent = image.alt + (image.dataset.reduced ? " (reduced from " + image.dataset.reduced + ")" : "");
  body.replaceChildren(figure(image, image.naturalWidth, "1:1"));
  if (large > 1) body.append(figure(image, image.naturalWidth * large, large + ":1"));
  if (training && !button.closest("#references, .corner")) {
    body.append(figure(training, image.naturalWidth * large, button.dataset.near ? "nearest training image" : "training image"));
  }
  viewer.current = button;
  if (!viewer.open) viewer.showModal();
}

const visible = (element) => element && element.getClientRects().length > 0;

// The neighbour in a film strip: along the row, or in the next row that is shown.
function neighbour(button, right, down) {
  const cell = button.closest("td");
  if (!cell) return null;
  let row = cell.parentElement;
  let index = [...row.children].indexOf(cell);
  for (;;) {
    if (down) row = down > 0 ? row.nextElementSibling : row.previousElementSibling;
    else index += right;
    if (!row || !row.children[index]) return null;
    const found = row.children[index].querySelector(".shot");
    if (visible(found)) return found;
  }
}

const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
document.addEventListener("keydown", (event) => {
  const from = viewer.open ? viewer.current : event.target.closest && event.target.closest(".shot");
  const move = moves[event.key];
  if (!from || !move) return;
  const to = neighbour(from, ...move);
  if (!to) return;
  event.preventDefault();
  if (viewer.open) show(to);
  else to.focus();
});
document.addEventListener("click", (event) => {
  const button = event.target.closest(".shot");
  if (button) show(button);
  else if (event.target === viewer) viewer.close();
});
viewer.addEventListener("close", () => viewer.current && viewer.current.focus());

// One tab stop per row of a film strip; arrow keys reach the rest.
for (const row of document.querySelectorAll(".film tr"))
  [...row.querySelectorAll(".shot")].slice(1).forEach((button) => (button.tabIndex = -1));

// Small screens start with small pictures.
if (window.innerWidth < 720) document.getElementById("zoom-0")?.click();

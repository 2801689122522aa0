// The page of a study. It asks this server alone, and goes on only when an answer is kept on the server's disk.
"use strict";

const find = (id) => document.getElementById(id);
const state = { study: null, trials: [], todo: [], at: null, since: 0, busy: false };
const KEYS = { 2: ["ArrowLeft", "ArrowRight"], 3: ["ArrowLeft", "ArrowDown", "ArrowRight"] };
const SIGNS = { ArrowLeft: "←", ArrowDown: "↓", ArrowRight: "→" };

async function ask(path, body, method = body ? "POST" : "GET") {
  const headers = body ? { "content-type": "application/json" } : {};
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
  const told = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(told.error || response.statusText), { status: response.status });
  return told;
}

function only(id) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== id;
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const address = (name) => `/images/${name}.png`;

async function start() {
  state.study = await ask("/api/study");
  document.title = state.study.title;
  find("title").textContent = state.study.title;
  find("terms").textContent = state.study.consent;
  find("begin").addEventListener("click", join);
  find("withdraw").addEventListener("click", withdraw);
  document.addEventListener("keydown", pressed);
  window.addEventListener("resize", fit);
  if (state.study.begun) await resume();
  else only("consent");
}

async function join() {
  find("begin").disabled = true;
  try {
    await ask("/api/participants", { consent: true });
    await resume();
  } catch (error) {
    say(error.message);
  }
  find("begin").disabled = false;
}

async function withdraw() {
  if (!confirm("Delete all your answers? This cannot be undone.")) return;
  await ask("/api/participants", null, "DELETE");
  only("");
  say("Your answers are deleted.");
}

async function resume() {
  const mine = await ask("/api/trials");
  const answered = new Set(mine.answered.map(([trial, question]) => `${trial}/${question}`));
  state.trials = mine.trials;
  state.todo = mine.trials.flatMap((_, trial) => state.study.questions.map((question) => ({ trial, question })));
  state.total = state.todo.length;
  state.todo = state.todo.filter(({ trial, question }) => !answered.has(`${trial}/${question.name}`));
  find("code").textContent = mine.participant;
  await next();
}

async function next() {
  if (!state.todo.length) {
    only("done");
    find("done").querySelector("h1").focus();
    return;
  }
  const before = state.at && state.at.trial;
  state.at = state.todo[0];
  const trial = state.trials[state.at.trial];
  if (before !== state.at.trial) await lay(trial);
  question(trial);
  only("trial");
  fit();
  state.since = performance.now();
  state.busy = false;
  const later = state.todo.find((one) => one.trial !== state.at.trial);
  if (later) for (const name of named(state.trials[later.trial])) new Image().src = address(name);
}

const named = (trial) => [...trial.sides.flat(), ...trial.references, ...trial.before];

async function lay(trial) {
  const two = trial.sides.length === 2;
  const sides = trial.sides.map((names, side) => {
    const label = two ? ["Left", "Right"][side] : "Picture";
    return element("div", { className: "side" }, ...names.map((name, i) => shot(name, names.length > 1 ? `${label} ${i + 1}` : label)));
  });
  find("pair").replaceChildren(...sides);
  find("references").firstElementChild.replaceChildren(...trial.references.map((name) => element("img", { src: address(name), alt: "The subject" })));
  find("before").hidden = !trial.before.length;
  find("before").lastElementChild.replaceChildren(...trial.before.map((name, i) => shot(name, `Before ${i + 1}`)));
  find("prompt").textContent = trial.prompt;
  // Both pictures appear at the same moment: which one arrives first says nothing.
  await Promise.all([...document.querySelectorAll("#pair img, #before img")].map((image) => image.decode().catch(() => {})));
}

function shot(name, label) {
  const button = element("button", { type: "button", className: "shot" }, element("img", { src: address(name), alt: label }));
  button.setAttribute("aria-label", `${label} picture: enlarge`);
  button.addEventListener("click", zoom);
  return button;
}

// Small pictures are shown at a whole number of the screen's pixels for each of theirs, so that none is wider than another.
function fit() {
  for (const image of document.querySelectorAll(".side img, #before img")) {
    const row = image.closest("#before") || image.closest(".side");
    const many = row.querySelectorAll("img").length;
    const columns = Math.min(many, row.id === "before" || window.innerWidth > 600 ? 4 : 2);
    const room = (row.clientWidth - 6 * (columns - 1)) / columns;
    const tall = Math.max(96, window.innerHeight * (many > 1 ? 0.24 : 0.52));
    const factor = Math.floor(Math.min(room / image.naturalWidth, tall / image.naturalHeight) * devicePixelRatio) / devicePixelRatio;
    image.className = factor >= 1 ? "pixels" : "";
    image.style.width = factor >= 1 ? `${factor * image.naturalWidth}px` : `${Math.min(room, (tall * image.naturalWidth) / image.naturalHeight)}px`;
  }
}

function question(trial) {
  const asked = state.at.question;
  find("question").textContent = asked.words;
  find("references").hidden = asked.shows !== "references" && !trial.before.length;
  find("prompt").hidden = asked.shows !== "prompt" && !(trial.before.length && trial.prompt);
  const keys = KEYS[asked.buttons.length] || [];
  find("choices").replaceChildren(...asked.buttons.map(({ choice, label }, i) => {
    const sign = element("kbd", { textContent: SIGNS[keys[i]] || `${i + 1}` });
    sign.setAttribute("aria-hidden", "true");
    const button = element("button", { type: "button" }, label, sign);
    button.addEventListener("click", () => answer(choice, button));
    return button;
  }));
  const done = state.total - state.todo.length;
  find("progress").value = done / state.total;
  find("place").textContent = `${done + 1} of ${state.total}`;
  find("hint").replaceChildren("Select a picture to see its pixels", element("span", { className: "keys", textContent: ", or press Z. Arrow keys answer." }));
}

function pressed(event) {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || find("trial").hidden || find("zoom").open) return;
  if (event.key === "z" || event.key === "Z") return zoom();
  const buttons = [...find("choices").children];
  const place = (KEYS[buttons.length] || []).indexOf(event.key);
  const index = place >= 0 ? place : /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : -1;
  if (buttons[index]) {
    event.preventDefault();
    buttons[index].click();
  }
}

async function answer(choice, button) {
  const milliseconds = Math.round(performance.now() - state.since);
  if (state.busy || milliseconds < 150) return; // a second press of the same key
  state.busy = true;
  button.classList.add("chosen");
  const { trial, question } = state.at;
  const key = [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const body = { key, trial, question: question.name, choice, milliseconds: Math.min(milliseconds, 86400000) };
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      await ask("/api/answers", body);
      break;
    } catch (error) {
      if (error.status === 409) break; // answered in another tab
      if (error.status && error.status < 500 && error.status !== 429) {
        say(`${error.message}. Reload the page.`);
        return;
      }
      say("Not saved yet; trying again.");
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
  say("");
  state.todo.shift();
  await next();
}

function zoom() {
  const images = [...find("pair").querySelectorAll("img")];
  const small = images[0].naturalWidth < 256;
  const scales = small ? [1, 4, 8] : [1, 2, 4];
  const panes = images.map((image) => element("div", { className: "pane", tabIndex: 0, ariaLabel: image.alt }, element("img", { src: image.src, alt: image.alt })));
  const size = (factor) => {
    for (const pane of panes) pane.firstElementChild.style.width = `${(factor * pane.firstElementChild.naturalWidth) / (small ? 1 : devicePixelRatio)}px`;
    for (const button of find("scales").children) button.setAttribute("aria-pressed", String(Number(button.value) === factor));
  };
  find("scales").replaceChildren(...scales.map((factor) => {
    const button = element("button", { type: "button", value: factor, textContent: `${factor}:1` });
    button.addEventListener("click", () => size(factor));
    return button;
  }));
  for (const pane of panes) {
    pane.addEventListener("scroll", () => {
      for (const other of panes) {
        if (other.scrollTop !== pane.scrollTop) other.scrollTop = pane.scrollTop;
        if (other.scrollLeft !== pane.scrollLeft) other.scrollLeft = pane.scrollLeft;
      }
    });
  }
  find("panes").replaceChildren(...panes);
  find("zoom").showModal();
  Promise.all(panes.map((pane) => pane.firstElementChild.decode().catch(() => {}))).then(() => size(scales[small ? 1 : 0]));
}

function say(words) {
  find("status").textContent = words;
}

start().catch((error) => say(`The study cannot be reached: ${error.message}`));

// The page of 08-web-page.py: files go to the server one after another, a row shows how far each
// one is, and the report of one row is shown below the table. The server keeps the results; the
// tab keeps their names, so a reload shows them again.
"use strict";

const POLL = 400; // ms between two questions, while there is work
const AT_ONCE = 3; // files of this tab that may wait on the server
const MEDIA = /\.(mkv|mov|m4v|avi|webm|mts|m2ts|ts|3gp|wmv|flv|heic|heif|avif|jfif|webp)$/i; // not every browser knows them
const OVER = ["Done", "Deleted"];
const SIGNS = {
  "likely fake": ["▲", "fake"], "likely real": ["○", "real"], "undecided": ["◇", "open"],
  "no face": ["□", "none"], "not checked": ["✕", "fake"],
};
const get = (selector, inside = document) => inside.querySelector(selector);
const settings = document.body.dataset;
const entries = []; // of the table: name, file, row, state as the server gives it, and what is asked
let shown = null; // the entry whose report is open
let polling = false;
let sending = Promise.resolve();

// --- Files that come in ---------------------------------------------------------------------------

function take(files, leftOut = 0) {
  const size = (file) => `${Math.ceil(file.size / 1e6).toLocaleString("en")} MB`;
  const limit = Number(settings.uploadLimit);
  get("#problems").replaceChildren();
  const fit = files.filter((file) => file.size <= limit * 1e6);
  for (const file of files.filter((file) => !fit.includes(file))) {
    complain(`${file.name} is too large`, `It has ${size(file)}; the page takes up to ${limit.toLocaleString("en")} MB per file.`,
      "Cut out the part that matters, or check the file in a terminal: deepfake-detect has no such limit.");
  }
  if (leftOut) complain(`${leftOut} ${leftOut > 1 ? "files were" : "file was"} left out`, "Only videos and pictures of a folder are checked.");
  start(fit.map((file) => ({ name: file.name, file })));
}

function start(added) {
  if (!added.length) return;
  close();
  for (const entry of added) {
    entry.state = entry.example ? { phase: "Drawing the example" } : { phase: "Uploading", share: 0 };
    entry.opens = added.length === 1; // one answer is shown at once, of several there is the table
    entries.push(entry);
    addRow(entry);
    sending = sending.then(() => send(entry));
  }
  get("#results").hidden = false;
}

async function send(entry) {
  const waiting = () => entries.filter((one) => one.id && ["Waiting", "Opening the file"].includes(one.state.phase)).length;
  while (waiting() >= AT_ONCE && !entry.removed) await new Promise((go) => setTimeout(go, POLL));
  if (entry.removed) return;
  const answer = entry.example
    ? await ask("POST", "examples", JSON.stringify({ example: entry.example }), entry)
    : await ask("POST", "files", toForm(entry.file), entry);
  entry.file = null;
  if (entry.removed) {
    if (answer.id) ask("DELETE", `jobs/${answer.id}`);
  } else if (answer.id) {
    entry.id = answer.id;
    entry.name = get(".open", entry.row).textContent = answer.name;
    keep();
    update(entry, answer);
    poll();
  } else {
    update(entry, { phase: "Done", verdict: "not checked", reason: answer.reason, advice: "Drop it again." });
  }
}

function toForm(file) {
  const form = new FormData();
  form.append("file", file, file.name);
  return form;
}

// Ask the server; what it answers, or the reason why it did not. An upload shows how far it is.
function ask(method, address, body = null, entry = null) {
  return new Promise((answer) => {
    const request = new XMLHttpRequest();
    if (entry) {
      entry.request = request;
      if (entry.file) request.upload.onprogress = (event) => update(entry, { phase: "Uploading", share: event.loaded / event.total });
    }
    request.onload = () => {
      try { answer(JSON.parse(request.responseText || "{}")); } catch { answer({ reason: `The page's program answered with an error (${request.status}).` }); }
    };
    request.onerror = request.onabort = () => answer({ reason: "The page's program does not answer.", lost: true });
    request.open(method, address);
    request.send(body);
  });
}

// Files of dropped folders, at any depth.
async function readDropped(items) {
  const files = [];
  let leftOut = 0;
  async function walk(entry, inFolder) {
    if (entry.isFile) {
      const file = await new Promise((found, lost) => entry.file(found, lost)).catch(() => null);
      if (file && (!inFolder || isMedia(file))) files.push(file);
      else if (!file || !file.name.startsWith(".")) leftOut += 1;
    } else {
      const reader = entry.createReader();
      for (let some = [null]; some.length;) { // it gives up to 100 at a time
        some = await new Promise((found) => reader.readEntries(found, () => found([])));
        for (const one of some) await walk(one, true);
      }
    }
  }
  const given = [...items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  for (const one of given) {
    if (one instanceof File) files.push(one);
    else if (one) await walk(one, false);
  }
  return [files, leftOut];
}

function isMedia(file) {
  return !file.name.startsWith(".") && (/^(video|image)\//.test(file.type) || MEDIA.test(file.name));
}

// --- The table ------------------------------------------------------------------------------------

function addRow(entry) {
  const row = get("#row").content.firstElementChild.cloneNode(true);
  entry.row = row;
  get(".open", row).textContent = entry.name;
  get(".open", row).onclick = () => open(entry);
  get(".remove", row).onclick = () => remove(entry);
  get("#results tbody").append(row);
  update(entry, entry.state);
}

function update(entry, state) {
  if (entry.removed) return;
  const before = entry.state;
  entry.state = state;
  const active = !OVER.includes(state.phase);
  const row = entry.row;
  const words = get(".words", row);
  const bar = get("progress", row);
  const line = active ? wordPhase(state) : state.verdict ? "" : state.phase === "Deleted" ? "deleted" : state.phase;
  words.replaceChildren();
  if (state.verdict) {
    const [sign, tone] = SIGNS[state.verdict];
    get(".verdict", row).className = `verdict ${tone}`;
    words.append(Object.assign(document.createElement("b"), { textContent: `${sign} ${state.verdict}` }));
  }
  if (line) words.append(Object.assign(document.createElement(state.verdict ? "small" : "span"), { textContent: `${state.verdict ? " " : ""}${line}` }));
  bar.hidden = !active;
  bar.setAttribute("aria-label", `${entry.name}: ${state.phase}`);
  if (state.share == null || state.phase === "Waiting") bar.removeAttribute("value");
  else bar.value = Math.min(state.share, 1);
  get(".score", row).textContent = wordScore(state);
  get(".open", row).disabled = !state.verdict;
  get(".remove", row).setAttribute("aria-label", `${active && !state.verdict ? "Cancel" : "Remove"} ${entry.name}`);
  if (before.phase !== state.phase || before.verdict !== state.verdict) {
    say(`${entry.name}: ${state.verdict && !before.verdict ? `${state.verdict}. ${wordScore(state)}` : line || state.phase}`);
  }
  if (state.verdict && entry.opens) open(entry, true);
  if (entry === shown && get(".report")) complete(entry);
}

function wordPhase(state) {
  const left = state.seconds_left == null ? "" : `, about ${wordSeconds(state.seconds_left)}${state.phase === "Waiting" ? "" : " left"}`;
  if (state.phase === "Waiting") return state.before ? `Waiting: ${state.before} ${state.before > 1 ? "files" : "file"} before this one${left}` : "Waiting";
  const share = state.share == null ? "" : ` ${Math.floor(100 * Math.min(state.share, 1))} %`;
  return `${state.phase}${share}${left}`;
}

function wordReason(reason) { // such as "is neither a video nor a picture"
  const sentence = /^(is|has|does|was|cannot|ends|changed) /.test(reason) ? `It ${reason}` : reason;
  return sentence.charAt(0).toUpperCase() + sentence.slice(1) + (/[.!?]$/.test(sentence) ? "" : ".");
}

function wordSeconds(seconds) {
  return seconds < 60 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}

function wordScore(state) {
  if (state.score == null) return "";
  const range = state.interval_95 ? ` (${state.interval_95.map((end) => Math.round(100 * end)).join(" to ")})` : "";
  return `${state.score}${range}`;
}

function remove(entry) {
  entry.removed = true;
  if (entry.request) entry.request.abort();
  if (entry.id) ask("DELETE", `jobs/${entry.id}`);
  if (shown === entry) close();
  const next = entry.row.nextElementSibling || entry.row.previousElementSibling;
  const focused = entry.row.contains(document.activeElement);
  entries.splice(entries.indexOf(entry), 1);
  entry.row.remove();
  get("#results").hidden = !entries.length;
  if (focused) (next ? get(".remove", next) : get("#choose-files")).focus();
  say(`${entry.name}: removed`);
  keep();
}

// --- The report -----------------------------------------------------------------------------------

async function open(entry, byItself = false) {
  entry.opens = false;
  close();
  shown = entry;
  entry.row.classList.add("shown");
  const answer = get("#answer");
  if (entry.state.verdict === "not checked") {
    answer.replaceChildren(makeCard(`${entry.name} could not be checked`, wordReason(entry.state.reason), entry.state.advice));
  } else {
    const text = await fetch(`results/${entry.id}/article.html`).then((got) => (got.ok ? got.text() : null), () => null);
    if (shown !== entry) return;
    if (text === null) answer.replaceChildren(makeCard("The report is gone", "The page's program has deleted it or has ended."));
    else answer.innerHTML = text;
  }
  answer.hidden = false;
  complete(entry);
  keep();
  // Reading goes on at the answer, unless its reader is busy elsewhere.
  const focused = document.activeElement;
  if (!byItself || focused === document.body || get("#drop").contains(focused)) {
    const title = get("h1, h2", answer);
    title.tabIndex = -1;
    title.focus({ preventScroll: true });
  }
  answer.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

// Play the marked copy where its still picture is, and offer the files, as soon as each is there.
function complete(entry) {
  const answer = get("#answer");
  const at = `results/${entry.id}`;
  const { marked, ready, notes = [] } = entry.state;
  const still = get(".still", answer);
  if (marked && marked.endsWith(".mp4") && still && !get("video", answer)) {
    const video = Object.assign(document.createElement("video"), { controls: true, preload: "auto", src: `${at}/${marked}`, poster: still.src });
    video.setAttribute("aria-label", "The video, with a box on every face");
    still.before(video); // which hides it, but for paper
  }
  if (!ready || get(".buttons", answer) || entry.state.verdict === "not checked") return;
  const links = document.createElement("p");
  links.className = "buttons";
  const offer = (words, href) => links.append(Object.assign(document.createElement("a"), { textContent: words, href }));
  offer("Save the report", `${at}/report.html?save`);
  if (marked) offer("Save the marked copy", `${at}/${marked}?save`);
  offer("Save the numbers (JSON)", `${at}/result.json?save`);
  offer("Open the report alone, to print", `${at}/report.html`);
  links.lastElementChild.target = "_blank";
  answer.prepend(links, ...notes.map((note) => Object.assign(document.createElement("p"), { textContent: note, className: "soft" })));
}

function close() {
  shown?.row.classList.remove("shown");
  shown = null;
  get("#answer").replaceChildren();
  get("#answer").hidden = true;
}

function makeCard(title, ...lines) {
  const card = document.createElement("article");
  card.className = "problem";
  card.append(Object.assign(document.createElement("h2"), { textContent: title }));
  for (const line of lines.filter(Boolean)) card.append(Object.assign(document.createElement("p"), { textContent: line }));
  return card;
}

function complain(...words) {
  get("#problems").append(makeCard(...words));
}

let toSay = [];
function say(words) { // to screen readers, a few words at a time
  toSay.push(words);
  setTimeout(() => { if (toSay.length) get("#said").textContent = toSay.slice(-3).join(". "); toSay = []; }, 300);
}

// --- The server -----------------------------------------------------------------------------------

const active = () => entries.filter((entry) => entry.id && !OVER.includes(entry.state.phase));

async function poll() {
  if (polling) return;
  polling = true;
  while (active().length) {
    const said = await ask("POST", "jobs", JSON.stringify({ ids: active().map((entry) => entry.id) }));
    if (said.jobs) {
      get("#problems .lost")?.remove();
      for (const state of said.jobs) {
        const entry = entries.find((one) => one.id === state.id);
        if (entry) update(entry, state);
      }
    } else if (!get("#problems .lost")) {
      complain("The page's program does not answer", "It may have ended. Start it again in its terminal (make page); results of before are deleted.");
      get("#problems").lastElementChild.classList.add("lost");
    }
    await new Promise((go) => setTimeout(go, said.jobs ? POLL : 2000));
  }
  polling = false;
}

function keep() { // the names of this tab's results, for a reload
  const kept = entries.filter((entry) => entry.id).map(({ id, name }) => ({ id, name }));
  sessionStorage.setItem("results", JSON.stringify({ kept, shown: shown?.id }));
}

async function restore() {
  const { kept = [], shown: was } = JSON.parse(sessionStorage.getItem("results") || "{}");
  if (!kept.length) return;
  const said = await ask("POST", "jobs", JSON.stringify({ ids: kept.map((one) => one.id) }));
  for (const { id, name } of kept) {
    const state = said.jobs?.find((one) => one.id === id) || { phase: "Deleted" };
    const entry = { id, name, state };
    entries.push(entry);
    addRow(entry);
    entry.opens = id === was;
    update(entry, state);
  }
  get("#results").hidden = false;
  poll();
}

get("#choose-files").onclick = () => get("#files").click();
get("#choose-folder").onclick = () => get("#folder").click();
get("#files").onchange = (event) => { take([...event.target.files]); event.target.value = ""; };
get("#folder").onchange = (event) => {
  const all = [...event.target.files].filter((file) => !file.name.startsWith("."));
  const media = all.filter(isMedia);
  take(media, all.length - media.length);
  event.target.value = "";
};
for (const button of document.querySelectorAll("[data-example]")) {
  button.onclick = () => { get("#problems").replaceChildren(); start([{ name: button.textContent, example: button.dataset.example }]); };
}
get("#remove-all").onclick = () => { [...entries].forEach(remove); get("#choose-files").focus(); };
document.addEventListener("dragover", (event) => { event.preventDefault(); get("#drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) get("#drop").classList.remove("over"); });
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  get("#drop").classList.remove("over");
  take(...await readDropped(event.dataTransfer.items));
});
addEventListener("pagehide", () => {
  if (active().length) navigator.sendBeacon("jobs/left", JSON.stringify({ ids: active().map((entry) => entry.id) }));
});
addEventListener("pageshow", (event) => { if (event.persisted) poll(); });
restore();

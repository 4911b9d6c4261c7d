// The chat page: it talks to the OpenAI-compatible API beside it and keeps everything in this browser.
// Text of people and models becomes text nodes, never markup. Errors are sentences.

// Sampling fields as the API names them. An empty field is not sent: the server's default holds.
// A field in steps of ANY takes fractions, one in steps of 1 integers alone.
const ANY = "any";
const SAMPLING = [
  { name: "temperature", label: "Temperature", hint: "0 takes the most probable token", min: 0, step: ANY },
  { name: "top_p", label: "Top p", hint: "Mass to draw from; 1 is off", min: 0, max: 1, step: ANY },
  { name: "top_k", label: "Top k", hint: "Tokens to draw from; 0 is off", min: 0, step: 1 },
  { name: "min_p", label: "Min p", hint: "Least share of the best; 0 is off", min: 0, max: 1, step: ANY },
  { name: "repeat_penalty", label: "Repeat penalty", hint: "Above 1 avoids repetition", min: 0, step: ANY },
  { name: "max_tokens", label: "Max tokens", hint: "Length of an answer, at most", min: 1, step: 1 },
  { name: "seed", label: "Seed", hint: "The same repeats an answer", min: 0, max: 2 ** 53 - 1, step: 1 },
];
const PREFIX = "gguf-engine.";
const CHAT = `${PREFIX}chat.`;
const KEY = `${PREFIX}api-key`;
const UNHEALTHY_RETRY_MS = 3000;
const DELETED = "deleted"; // why an answer was stopped: its conversation is not to be kept

const $ = (id) => document.getElementById(id);
const state = {
  current: null, // the conversation on screen: {id, updated, system, messages: [{role, content, ...}]}
  running: null, // AbortController of the answer being written
  editing: null, // index of the user's message being edited
  model: null, // its id, from /v1/models
  retry: 0,
};

/** What went wrong, as a sentence for people, with the HTTP status where there was one. */
class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function sentence(text) {
  const trimmed = String(text ?? "").trim();
  if (!trimmed) return "";
  const isWord = /^[a-z]+\s/.test(trimmed); // and no name, such as top_p
  const begun = isWord ? trimmed[0].toUpperCase() + trimmed.slice(1) : trimmed;
  return begun + (/[.!?]$/.test(begun) ? "" : ".");
}

function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// --- What the browser keeps ------------------------------------------------------------------------------

function read(key, fallback) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

function keep(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    notify("The browser has no room to keep this: export what matters, then delete old conversations.");
  }
}

function storedKeys() {
  try {
    return Object.keys(localStorage);
  } catch {
    notify("The browser lets this page keep nothing: conversations are lost when it closes.");
    return [];
  }
}

function conversations() {
  const found = [];
  for (const key of storedKeys().filter((name) => name.startsWith(CHAT))) {
    const conversation = read(key, null);
    if (Array.isArray(conversation?.messages)) found.push(conversation);
    else notify("A stored conversation is damaged and cannot be shown. It stays in the browser's storage.");
  }
  return found.sort((one, other) => other.updated - one.updated);
}

function save(conversation) {
  conversation.updated = Date.now();
  keep(CHAT + conversation.id, conversation);
  showConversations();
}

function newConversation() {
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  return { id, updated: 0, system: read(`${PREFIX}system`, ""), messages: [] };
}

function exportAll() {
  const content = { format: "gguf-engine conversations", version: 1, conversations: conversations() };
  const blob = new Blob([JSON.stringify(content, null, 2)], { type: "application/json" });
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: "conversations.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// --- The API ---------------------------------------------------------------------------------------------

async function call(path, options = {}) {
  const key = $("key").validity.valid ? $("key").value : "";
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Problem("The server cannot be reached. See that it is running, then try again.");
  }
  if (!response.ok) throw await refusal(response, key);
  return response;
}

async function refusal(response, key) {
  const body = await response.json().catch(() => null);
  const said = sentence(body?.error?.message ?? body?.reason);
  if (response.status === 401) {
    const problem = key
      ? "The server does not accept this API key. Enter another one in the settings."
      : "The server asks for an API key. Enter it in the settings.";
    if (key === $("key").value) askForKey(problem); // not where another one has been typed since
    return new Problem(problem, 401);
  }
  if (response.status === 429) {
    const wait = Number(response.headers.get("retry-after")) || 0;
    const when = wait ? `in ${wait} second${wait === 1 ? "" : "s"}` : "in a moment";
    return new Problem(`The server is busy: its queue is full. Try again ${when}.`, 429);
  }
  const bare = `The server answered with status ${response.status} and gave no reason.`;
  return new Problem(said || bare, response.status);
}

/** Yield the data of each server-sent event. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

/** Read one streamed answer into `answer`, calling `changed` after each piece of text. */
async function receive(response, answer, changed) {
  const sent = performance.now();
  let first = 0;
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem(`The answer broke off. ${sentence(chunk.error.message)}`);
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) {
      first ||= performance.now();
      answer.content += choice.delta.content;
      changed();
    }
    if (choice?.finish_reason) answer.finish = choice.finish_reason;
    if (chunk.usage) answer.stats = measure(chunk.usage, chunk.timings, sent, first || performance.now());
  }
  throw new Problem("The connection ended before the answer was complete.");
}

/** Counts and speed of an answer: the server's own timings, or this page's clock (ms) without them. */
function measure(usage, timings, sent, first) {
  const n = usage.completion_tokens;
  const seen = n > 1 ? ((n - 1) * 1000) / Math.max(performance.now() - first, 1) : 0;
  return {
    n_prompt: usage.prompt_tokens,
    n_cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    n_completion: n,
    tokens_per_s: timings?.decode_tokens_per_s ?? seen,
    ttft_s: timings?.ttft_s ?? (first - sent) / 1000,
  };
}

async function refresh() {
  clearTimeout(state.retry);
  let problem = "";
  try {
    await call("health");
    const models = await (await call("v1/models")).json();
    state.model = models.data?.[0]?.id ?? null;
    if (state.model) $("model").textContent = state.model;
    else problem = "The server has no model";
  } catch (error) {
    problem = error instanceof Problem ? error.message : sentence(error.message);
    // A key is not there the sooner for asking again.
    if (error.status !== 401) state.retry = setTimeout(refresh, UNHEALTHY_RETRY_MS);
  }
  if ($("status").textContent !== problem) $("status").textContent = problem;
  $("status").classList.toggle("bad", Boolean(problem));
}

// --- Asking ----------------------------------------------------------------------------------------------

function requestBody(conversation) {
  const system = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  const spoken = conversation.messages.filter((message) => message.content);
  const messages = system.concat(spoken.map(({ role, content }) => ({ role, content })));
  const body = { model: state.model, messages, stream: true, stream_options: { include_usage: true } };
  for (const { name } of SAMPLING) if ($(name).value) body[name] = Number($(name).value);
  return body;
}

/**
 * Ask for the answer to the conversation on screen, whose last message is the user's.
 * `previous` is the answer that it replaces; it comes back where the new one never begins.
 */
async function answer(previous) {
  const conversation = state.current;
  const { signal } = (state.running = new AbortController());
  const message = { role: "assistant", content: "" };
  notify("");
  try {
    if (!state.model) await refresh();
    const body = JSON.stringify(requestBody(conversation));
    conversation.messages.push(message);
    if (conversation === state.current) showMessages();
    const headers = { "content-type": "application/json" };
    const response = await call("v1/chat/completions", { method: "POST", headers, body, signal });
    await receive(response, message, () => paintSoon(message));
  } catch (error) {
    if (signal.aborted) message.finish = "cancelled";
    else message.problem = explain(error);
  }
  if (previous && !message.content) {
    conversation.messages.splice(-1, 1, previous);
    notify(message.problem ?? "");
  }
  if (state.running?.signal === signal) state.running = null;
  if (signal.reason !== DELETED) save(conversation);
  if (conversation === state.current) showLast();
  $("announcer").textContent = message.problem ?? message.content;
  if (message.problem || $("status").textContent) refresh();
}

function explain(error) {
  if (error instanceof Problem) return error.message;
  if (error instanceof SyntaxError) return "The server sent an answer that cannot be read: it is not JSON.";
  return "The connection broke before the answer was complete. Try again.";
}

function submit() {
  const text = $("prompt").value;
  if (state.running || !text.trim() || !settingsAreValid()) return;
  const conversation = state.current;
  if (state.editing !== null) conversation.messages.length = state.editing;
  conversation.messages.push({ role: "user", content: text });
  stopEditing();
  save(conversation);
  $("log").scrollTop = $("log").scrollHeight;
  answer();
}

function regenerate() {
  if (state.running || !settingsAreValid()) return;
  const { messages } = state.current;
  answer(messages.at(-1).role === "assistant" ? messages.pop() : undefined);
  focusPrompt();
}

function stop(reason) {
  state.running?.abort(reason);
}

function edit(index) {
  stop();
  state.editing = index;
  $("editing").hidden = false;
  writePrompt(state.current.messages[index].content);
  $("prompt").focus();
}

function stopEditing() {
  state.editing = null;
  $("editing").hidden = true;
  writePrompt("");
}

function writePrompt(text) {
  $("prompt").value = text;
  fitPrompt();
}

function fitPrompt() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight}px`;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = copyOldWay(text) ? "Copied" : "Select the text to copy it";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

// Browsers give the clipboard to https and localhost alone; a server on the local network is neither.
function copyOldWay(text) {
  const area = make("textarea", { value: text, className: "unseen" });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

// --- Messages on screen ----------------------------------------------------------------------------------

/** Cut text into paragraphs and fenced code; a fence that is still open reaches to the end. */
function blocks(text) {
  const found = [];
  let lines = []; // of the block being read
  let language = null; // of the code being read; null outside code
  const end = () => {
    const content = lines.join("\n");
    if (language !== null) found.push({ tag: "pre", content, language });
    else if (content.trim()) found.push({ tag: "p", content, language: "" });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const fence = /^ {0,3}```([^`]*)$/.exec(line);
    const closes = fence && language !== null && !fence[1].trim();
    if (fence && (closes || language === null)) {
      end();
      language = closes ? null : fence[1].trim();
    } else if (language === null && !line.trim()) end();
    else lines.push(line);
  }
  end();
  return found;
}

function inline(text) {
  return text.split(/((?<!`)`[^`\n]+`(?!`)|\*\*[^*\n]+\*\*)/).map((part, i) => {
    if (i % 2 === 0) return part;
    return part[0] === "`" ? make("code", {}, part.slice(1, -1)) : make("strong", {}, part.slice(2, -2));
  });
}

/** Write text into a box; blocks that are there already stay as they are. */
function write(box, text) {
  const wanted = blocks(text);
  while (box.childElementCount > wanted.length) box.lastElementChild.remove();
  wanted.forEach(({ tag, content, language }, i) => {
    const old = box.children[i];
    if (old?.localName === tag && old.source === content && old.dataset.language === language) return;
    const inside = tag === "pre" ? [make("code", {}, content)] : inline(content);
    const node = make(tag, { source: content }, ...inside);
    node.dataset.language = language;
    if (tag === "pre") node.tabIndex = 0; // scrolled with the keyboard too
    if (old) old.replaceWith(node);
    else box.append(node);
  });
}

function following(change) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

let painted = 0;
function paintSoon(message) {
  painted ||= requestAnimationFrame(() => {
    painted = 0;
    const last = $("messages").lastElementChild;
    if (last?.message === message) following(() => showAnswer(last, message));
  });
}

function showAnswer(view, message) {
  view.classList.toggle("waiting", !message.content);
  write(view.querySelector(".text"), message.content);
}

function statsOf(message) {
  const { stats } = message;
  const parts = [];
  if (message.finish === "cancelled") parts.push("stopped");
  if (stats) {
    parts.push(`${stats.n_completion} token${stats.n_completion === 1 ? "" : "s"}`);
    if (stats.tokens_per_s) parts.push(`${stats.tokens_per_s.toFixed(1)} tokens/s`);
    parts.push(`${stats.n_prompt} in the prompt${stats.n_cached ? ` (${stats.n_cached} cached)` : ""}`);
    parts.push(`first after ${stats.ttft_s.toFixed(2)} s`);
  }
  if (message.finish === "length") parts.push("ended at the length limit");
  return parts.join(" · ");
}

function messageView(message, index, isLast) {
  const mine = message.role === "user";
  const view = make("li", { className: `message ${mine ? "user" : "assistant"}`, message });
  view.append(make("span", { className: "unseen" }, mine ? "You:" : "Answer:"));
  view.append(make("div", { className: "text" }));
  const actions = make("span", { className: "actions" });
  const button = (label, onclick) => actions.append(make("button", { type: "button", onclick }, label));
  if (mine) view.querySelector(".text").textContent = message.content;
  else write(view.querySelector(".text"), message.content);
  if (message.problem) view.append(make("p", { className: "problem" }, message.problem));
  if (state.running && isLast) {
    view.classList.toggle("waiting", !mine && !message.content);
    return view;
  }
  const stats = make("span", { className: "stats quiet" }, mine ? "" : statsOf(message));
  if (message.content) button("Copy", (event) => copy(message.content, event.currentTarget));
  if (mine) button("Edit", () => edit(index));
  if (isLast) button(message.problem || mine ? "Try again" : "Regenerate", regenerate);
  view.append(make("div", { className: "below" }, stats, actions));
  return view;
}

function showMessages() {
  const { messages } = state.current;
  const last = messages.length - 1;
  $("empty").hidden = last >= 0;
  following(() => redraw($("messages"), messages.map((each, i) => messageView(each, i, i === last))));
  showRunning();
}

/** Draw the last message alone, so that what is selected above it stays so. */
function showLast() {
  const { messages } = state.current;
  const view = messageView(messages.at(-1), messages.length - 1, true);
  following(() => $("messages").lastElementChild.replaceWith(view));
  showRunning();
}

function showRunning() {
  const running = Boolean(state.running);
  $("stop").hidden = !running;
  $("send").hidden = running;
  $("messages").setAttribute("aria-busy", String(running));
  document.title = `${titleOf(state.current)} – gguf-engine`;
}

/** Put new items into a list; the button that had the focus has it again. */
function redraw(list, items) {
  const place = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...items);
  if (place >= 0) list.querySelectorAll("button")[place]?.focus();
}

// --- Conversations on screen -----------------------------------------------------------------------------

function titleOf(conversation) {
  const asked = conversation.messages.find(({ role }) => role === "user");
  return asked?.content.trim().slice(0, 80) || "New chat";
}

function showConversations() {
  redraw($("conversations"), conversations().map(conversationView));
}

function conversationView(conversation) {
  const title = titleOf(conversation);
  const open = make("button", { type: "button", className: "open", title }, title);
  open.setAttribute("aria-current", String(conversation.id === state.current.id));
  open.onclick = () => openChat(conversation);
  const remove = make("button", { type: "button", className: "delete" });
  const arm = (armed) => {
    remove.classList.toggle("armed", armed);
    remove.textContent = armed ? "Delete?" : "×";
    remove.setAttribute("aria-label", armed ? `Press again to delete ${title}` : `Delete ${title}`);
  };
  arm(false);
  remove.onblur = () => arm(false);
  remove.onclick = () => (remove.classList.contains("armed") ? removeChat(conversation.id) : arm(true));
  return make("li", {}, open, remove);
}

function removeChat(id) {
  localStorage.removeItem(CHAT + id);
  if (id === state.current.id) openChat(newConversation(), DELETED);
  else showConversations();
}

function openChat(conversation, reason) {
  stop(reason);
  state.running = null;
  state.current = conversation;
  $("system").value = conversation.system;
  stopEditing();
  notify("");
  toggleMenu(false);
  showConversations();
  showMessages();
  $("log").scrollTop = $("log").scrollHeight;
  focusPrompt();
}

/** Not where focus would bring up a keyboard over half of the screen. */
function focusPrompt() {
  if (matchMedia("(hover: hover)").matches) $("prompt").focus();
}

function toggleMenu(open) {
  const inside = $("sidebar").contains(document.activeElement);
  document.body.classList.toggle("menu-open", open);
  if (open) $("new-chat").focus();
  else if (inside) $("menu").focus();
  $("menu").setAttribute("aria-expanded", String(open));
}

// --- Settings --------------------------------------------------------------------------------------------

function makeSettings() {
  const kept = read(`${PREFIX}sampling`, {});
  for (const { name, label, hint, ...limits } of SAMPLING) {
    const about = { id: name, type: "number", inputMode: "decimal", placeholder: "default" };
    const input = make("input", { ...about, ...limits, value: kept[name] ?? "" });
    const problem = make("span", { id: `${name}-problem`, className: "problem", hidden: true });
    problem.setAttribute("role", "alert");
    input.setAttribute("aria-describedby", `${name}-hint ${name}-problem`);
    const below = make("p", { id: `${name}-hint`, className: "quiet" }, hint);
    $("sampling").append(make("div", {}, make("label", { htmlFor: name }, label), input, below, problem));
  }
  for (const input of $("settings-form").querySelectorAll("input")) input.oninput = () => keepSettings(input);
}

function keepSettings(changed) {
  const problem = $(`${changed.id}-problem`);
  problem.textContent = changed.validationMessage;
  problem.hidden = changed.validity.valid;
  keep(`${PREFIX}sampling`, Object.fromEntries(SAMPLING.map(({ name }) => [name, $(name).value])));
}

function readKey() {
  try {
    $("key").value = sessionStorage.getItem(KEY) ?? "";
  } catch {
    // A browser that lets the page keep nothing: the key is asked for again.
  }
}

function keepKey() {
  if (!$("key").validity.valid) return;
  try {
    sessionStorage.setItem(KEY, $("key").value);
  } catch {
    notify("The browser lets this page keep nothing: the API key is asked for again when it reloads.");
  }
  refresh();
}

function keepSystem() {
  state.current.system = $("system").value;
  keep(`${PREFIX}system`, state.current.system);
  if (state.current.messages.length) save(state.current);
}

function settingsAreValid() {
  const wrong = $("settings-form").querySelector("input:invalid");
  if (!wrong) return true;
  openSettings(wrong);
  keepSettings(wrong);
  return false;
}

function openSettings(field) {
  if (!$("settings").open) $("settings").showModal();
  field?.focus();
}

function askForKey(problem) {
  openSettings($("key"));
  $("key-problem").textContent = problem;
  $("key-problem").hidden = false;
}

function resetSampling() {
  for (const { name } of SAMPLING) {
    $(name).value = "";
    keepSettings($(name));
  }
}

// --- Light and dark --------------------------------------------------------------------------------------

function showTheme() {
  const theme = read(`${PREFIX}theme`, null);
  if (theme) document.documentElement.dataset.theme = theme;
}

function switchTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const now = document.documentElement.dataset.theme ?? system;
  keep(`${PREFIX}theme`, now === "dark" ? "light" : "dark");
  showTheme();
}

// --- Keys and buttons ------------------------------------------------------------------------------------

function onEscape(event) {
  if (event.key !== "Escape" || $("settings").open) return;
  if (state.running) stop();
  else if (state.editing !== null) stopEditing();
  else toggleMenu(false);
}

function onPromptKey(event) {
  // Enter also ends a word in an input method: that one is not ours.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
}

// A page that goes away mid-answer keeps what it has.
function onLeaving() {
  if (!state.running) return;
  const message = state.current.messages.at(-1);
  if (message?.role === "assistant") message.finish = "cancelled";
  keep(CHAT + state.current.id, state.current);
}

function start() {
  showTheme();
  makeSettings();
  readKey();
  const clicks = {
    "new-chat": () => openChat(newConversation()),
    "open-settings": () => openSettings(),
    "cancel-edit": stopEditing,
    menu: () => toggleMenu(!document.body.classList.contains("menu-open")),
    shade: () => toggleMenu(false),
    export: exportAll,
    theme: switchTheme,
    reset: resetSampling,
    stop: () => stop(),
  };
  for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
  $("composer").addEventListener("submit", (event) => (event.preventDefault(), submit()));
  $("settings-form").addEventListener("submit", (event) => (event.preventDefault(), $("settings").close()));
  $("prompt").addEventListener("keydown", onPromptKey);
  $("prompt").addEventListener("input", fitPrompt);
  $("system").addEventListener("change", keepSystem);
  $("key").addEventListener("change", keepKey);
  $("settings").addEventListener("close", focusPrompt);
  document.addEventListener("keydown", onEscape);
  addEventListener("pagehide", onLeaving);
  addEventListener("storage", showConversations);
  openChat(conversations()[0] ?? newConversation());
  refresh();
}

start();

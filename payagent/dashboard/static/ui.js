// Keeps a page fresh: when something changed, fetches it again and replaces the parts marked data-live that differ.
// A part that is a list (data-rows) is replaced row by row.
// Copies what a button says, and shows times in the reader's own zone. Without it, every page and form works.

const policy = window.trustedTypes?.createPolicy("payagent", { createHTML: (text) => text });
const live = document.getElementById("live");
let seconds = 1, timer, due = Infinity, stream, again, isLost = false, isAway = false, isLeaving = false, last = new Date();
const isAnswer = document.querySelector("#main > #refusal"); // to a form: it keeps what was typed

function localTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    time.title = new Date(time.dateTime).toLocaleString();
  }
}

function say() {
  const at = `${last.toISOString().slice(11, 19)} UTC`;
  live.classList.toggle("off", isLost);
  live.textContent = isLost ? `Not live since ${at}` : isAnswer ? `As it was at ${at}` : "Live. Times are UTC.";
}

async function refresh() {
  const answer = await fetch(location.href, { headers: { accept: "text/html", "payagent-refresh": "1" } });
  if (answer.redirected) { // the session has ended
    if (!isLeaving) keepTyped(new URL(answer.url).searchParams.get("next"));
    return isLeaving || location.assign(answer.url);
  }
  if (answer.status >= (isAnswer ? 500 : 400)) throw new Error(answer.status);
  isAway = false; // it answers, though it may have no stream to spare
  if (isAnswer) return;
  const text = await answer.text();
  const page = new DOMParser().parseFromString(policy ? policy.createHTML(text) : text, "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (fresh && "rows" in old.dataset) {
      merge(old, fresh);
      continue;
    }
    if (fresh && !isUsed(old) && plain(fresh) !== plain(old)) old.replaceWith(document.importNode(fresh, true));
  }
  last = new Date();
  if (isLost && stream?.readyState === EventSource.OPEN) found();
  localTimes();
  poll();
}

function merge(old, fresh) { // a list changes row by row, so that the one with focus stays where it is
  let at = old.firstElementChild;
  for (const row of fresh.children) {
    const was = document.getElementById(row.id);
    if (was && (isUsed(was) || plain(was) === plain(row))) {
      at = was.nextElementSibling;
      continue;
    }
    const now = document.importNode(row, true);
    if (was) {
      was.replaceWith(now);
      at = now.nextElementSibling;
    } else {
      now.classList.add("new");
      old.insertBefore(now, at);
    }
  }
  for (const row of [...old.children]) {
    if (!fresh.ownerDocument.getElementById(row.id) && !isUsed(row)) row.remove();
  }
}

function isUsed(part) {
  return part.contains(document.activeElement) || part.querySelector("details[open]");
}

function plain(part) { // each form's own id differs at every reading, and the title is ours
  const copy = part.cloneNode(true);
  for (const field of copy.querySelectorAll('[name="order"]')) field.remove();
  for (const time of copy.querySelectorAll("time")) time.removeAttribute("title");
  return copy.innerHTML;
}

function changed(wait) { // at most every 0.7 s, and not put off by what changes next
  const at = Math.max(Date.now() + wait, last.getTime() + 700);
  if (at >= due) return;
  due = at;
  clearTimeout(timer);
  timer = setTimeout(() => {
    due = Infinity;
    refresh().catch(lost);
  }, at - Date.now());
}

function poll() { // an order that waits for the terminal changes no payment
  const every = document.querySelector("[data-poll]")?.dataset.poll;
  if (every && !isLost) changed(every * 1000);
}

function lost() {
  if (isLeaving) return;
  isLost = isAway = true;
  say();
  if (stream?.readyState !== EventSource.OPEN || isAnswer) return;
  changed(seconds * 1000); // it is there, and refused this once
  seconds = Math.min(seconds * 2, 30);
}

function found() {
  isLost = isAway = false;
  seconds = 1;
  document.getElementById("held")?.remove();
  say();
}

function typedFields() {
  return [...document.querySelectorAll("#main form[method=post] :is(input:not([type=hidden]), textarea, select)")];
}

function keepTyped(page) { // where signing in leads, in another tab if a new link opens one
  const fields = typedFields();
  if (!fields.some((one) => isAnswer || one.value !== (one.defaultValue ?? one.value))) return;
  const typed = fields.map((one) => [one.name, one.value, one.checked]);
  localStorage.setItem(page, JSON.stringify([Date.now(), typed]));
}

function restoreTyped() {
  const here = location.pathname + location.search;
  const [at_ms, typed] = JSON.parse(localStorage.getItem(here) ?? "[0, []]");
  localStorage.removeItem(here);
  if (Date.now() - at_ms > 3600e3) return;
  typedFields().forEach((one, at) => {
    if (typed[at]?.[0] === one.name) [, one.value, one.checked] = typed[at];
  });
}

function hold(event) { // nothing would take the form, and the browser would leave the page
  event.preventDefault();
  const held = document.getElementById("held") ?? document.createElement("p");
  held.id = "held";
  held.className = "note warn";
  held.setAttribute("role", "alert");
  held.textContent = "payagent does not answer, so nothing was sent. What you typed stays here. Send it when the page is live again.";
  event.target.append(held);
}

function listen() { // a browser opens six connections to a host, so only a tab that is seen holds a stream
  if (document.hidden) return;
  stream = new EventSource("/ui/events");
  stream.onopen = () => {
    if (!isAnswer) changed(0); // the stream does not tell what changed before it opened
    found();
  };
  stream.onerror = () => {
    stream.close();
    lost();
    again = setTimeout(listen, seconds * 1000);
    seconds = Math.min(seconds * 2, 30);
    refresh().catch(lost); // leads to the sign-in page when the session has ended
  };
  stream.onmessage = () => isAnswer || changed(150);
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  live.textContent = "Copied.";
  setTimeout(say, 2000);
});

document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  if (isAway && !event.target.action.endsWith("/ui/pause")) hold(event); // to stop payments is always tried
  else isLeaving = true; // the form's answer says where to go
});

addEventListener("pagehide", () => (isLeaving = true)); // what breaks off then is not lost
addEventListener("pageshow", () => (isLeaving = false));
document.addEventListener("visibilitychange", () => {
  stream?.close();
  clearTimeout(again);
  clearTimeout(timer); // a hidden tab asks for nothing
  due = Infinity;
  listen();
});
localTimes();
restoreTyped();
listen();
if (!isAnswer) poll();

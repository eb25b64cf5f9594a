// Keeps the page up to date: fetches its changing part, and replaces it when it differs.
"use strict";
(() => {
  const REFRESH_MS = 2000, TIMEOUT_MS = 8000;
  const main = document.querySelector("main"), link = document.getElementById("link");
  let shown = main.innerHTML, answeredAt = Date.now();

  const say = (text, kind = "") => {
    if (link.textContent !== text) link.textContent = text;
    link.className = kind;
  };

  const isBeingRead = () => {
    const selection = getSelection();
    return !selection.isCollapsed && main.contains(selection.anchorNode);
  };

  // What the reader has opened, closed or scrolled stays so, also where it is not shown between two rounds.
  const kept = new Map();
  const show = (text) => {
    const scrolled = new Map();
    for (const element of main.querySelectorAll("details[id]")) kept.set(element.id, element.open);
    for (const element of main.querySelectorAll("pre[id]")) {
      const end = element.scrollHeight - element.clientHeight;
      if (element.scrollTop < end - 4) scrolled.set(element.id, element.scrollTop);
    }
    const focused = main.contains(document.activeElement) ? document.activeElement.closest("[id]")?.id : undefined;
    main.innerHTML = text;
    for (const [id, open] of kept) {
      const element = document.getElementById(id);
      if (element) element.open = open;
    }
    settle(scrolled);
    if (focused) document.getElementById(focused)?.querySelector("summary")?.focus({ preventScroll: true });
    document.title = main.querySelector("[data-title]")?.dataset.title ?? document.title;
  };

  // A log shows its end, unless the reader has scrolled it.
  const settle = (scrolled) => {
    for (const element of main.querySelectorAll("pre[id]"))
      element.scrollTop = scrolled.get(element.id) ?? element.scrollHeight;
  };

  const refresh = async () => {
    try {
      const answer = await fetch("?part", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
      if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
      const text = await answer.text();
      answeredAt = Date.now();
      if (isBeingRead()) return say("paused while you select text");
      if (text !== shown) show(text);
      shown = text;
      say("live", "live");
    } catch {
      const seconds = Math.round((Date.now() - answeredAt) / 1000);
      say(`no answer for ${seconds} s: the agent has ended or cannot be reached; this is how it was`, "lost");
    }
  };

  const run = async () => {
    if (!document.hidden) await refresh();
    setTimeout(run, REFRESH_MS);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  settle(new Map());
  say("live", "live");
  setTimeout(run, REFRESH_MS);
})();

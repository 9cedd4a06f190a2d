"use strict";
// Contents, search, light and dark, tables that sort: what a page has without its figures.
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const made = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text, ...more });

  // Light and dark: the system's, or what the reader chose last.
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  window.qflTheme = () => root.style.colorScheme || (system.matches ? "dark" : "light");
  const changed = () => document.dispatchEvent(new Event("qfl-theme"));
  system.addEventListener("change", changed);
  byId("theme").addEventListener("click", () => {
    root.style.colorScheme = window.qflTheme() === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("qfl-theme", root.style.colorScheme);
    } catch {} // A browser that keeps nothing for files still shows the choice.
    changed();
  });

  // Contents: folded away on a narrow page; the section that is read is marked.
  const nav = document.querySelector("nav");
  const menu = byId("menu");
  const open = (on) => {
    nav.classList.toggle("open", on);
    menu.setAttribute("aria-expanded", String(on));
  };
  menu.addEventListener("click", () => open(!nav.classList.contains("open")));
  byId("contents").addEventListener("click", () => open(false));
  const sections = [...document.querySelectorAll("main > section")];
  const links = new Map([...byId("contents").querySelectorAll("a")].map((a) => [a.getAttribute("href").slice(1), a]));
  const mark = () => {
    const above = sections.filter((section) => !section.hidden && section.getBoundingClientRect().top < 140);
    const atEnd = window.innerHeight + window.scrollY >= root.scrollHeight - 4 && window.scrollY > 0;
    const current = atEnd ? sections.at(-1) : above.at(-1) || sections[0];
    links.forEach((a, id) => a.classList.toggle("current", Boolean(current) && id === current.id));
  };
  document.addEventListener("scroll", mark, { passive: true });

  // Data: every table of the page in one list.
  const files = [...document.querySelectorAll("a[download]")];
  const data = byId("data");
  if (data) {
    const list = made("ul", "", { className: "files" });
    for (const file of files) {
      const item = made("li", "");
      item.append(file.cloneNode(true), made("span", `${file.dataset.size}, ${file.closest("section").dataset.title}`));
      list.append(item);
    }
    data.append(list);
    data.hidden = false;
  }
  mark();

  // Tables: a click on a header sorts; a long table has a filter.
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    if (text === "" || text === "–") return null;
    const value = Number(cell.dataset.value ?? text.replaceAll(",", ""));
    return Number.isNaN(value) ? text.toLowerCase() : value;
  };
  const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  for (const table of document.querySelectorAll("table:has(thead)")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const sort = (column) => {
      const down = heads[column].getAttribute("aria-sort") === "ascending";
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      // What has no value stays at the end, whichever way is sorted.
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : compare(a, b) * (down ? -1 : 1)));
      body.append(...rows.map(([, row]) => row));
    };
    heads.forEach((head, column) => {
      head.tabIndex = 0;
      head.addEventListener("click", () => sort(column));
      head.addEventListener("keydown", (event) => event.key === "Enter" && sort(column));
    });
    if (body.rows.length < 7) continue;
    const filter = made("input", "", { type: "search", className: "filter", placeholder: "Filter rows" });
    filter.setAttribute("aria-label", "Filter the rows of this table");
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
    table.parentElement.before(filter);
  }

  // Search over sections, features, tables and columns; all words must be there, those in a name first.
  const search = byId("search");
  const found = byId("found");
  const items = [];
  for (const section of sections) {
    const title = section.dataset.title || section.querySelector("h2").textContent;
    const text = [...section.querySelectorAll("p:not(.downloads, .export), ul:not(.files) li, caption, .card th")];
    items.push({ kind: "section", name: title, more: text.map((part) => part.textContent).join(" "), at: section });
    for (const table of section.querySelectorAll("table:has(thead)")) {
      for (const head of table.tHead.rows[0].cells) {
        items.push({ kind: "column", name: head.textContent, more: title, hidden: head.title, at: table });
      }
    }
  }
  for (const feature of document.querySelectorAll(".findings strong")) {
    items.push({ kind: "feature", name: feature.textContent, more: feature.parentElement.textContent, at: feature.parentElement });
  }
  for (const file of files) {
    items.push({ kind: "table", name: file.download, more: file.closest("section").dataset.title, at: file });
  }
  for (const item of items) {
    item.name = item.name.trim();
    item.low = item.name.toLowerCase();
    item.all = `${item.low} ${item.more} ${item.hidden || ""}`.toLowerCase().replaceAll("_", " ");
  }
  const RANKS = { feature: 0, section: 1, table: 2, column: 3 };
  const show = (item) => {
    found.hidden = true;
    search.blur();
    item.at.scrollIntoView({ block: item.at.matches("section") ? "start" : "center" });
    item.at.classList.add("hit");
    setTimeout(() => item.at.classList.remove("hit"), 1600);
  };
  const choose = (step) => {
    const entries = [...found.children];
    const now = entries.findIndex((entry) => entry.classList.contains("chosen"));
    entries[now]?.classList.remove("chosen");
    entries.at((now + step + entries.length) % entries.length)?.classList.add("chosen");
  };
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().replaceAll("_", " ").split(/\s+/).filter(Boolean);
    const hits = items.filter((item) => words.every((word) => item.all.includes(word)));
    const rank = (item) => RANKS[item.kind] + (item.low.replaceAll("_", " ").includes(words[0]) ? 0 : 10);
    hits.sort((a, b) => rank(a) - rank(b));
    found.replaceChildren(...hits.slice(0, 12).map((item) => {
      const entry = made("li", "");
      const button = made("button", item.name, { type: "button", onclick: () => show(item) });
      button.append(made("span", item.kind === "column" || item.kind === "table" ? `${item.kind}, ${item.more}` : item.kind));
      entry.append(button);
      return entry;
    }));
    if (words.length && !hits.length) found.replaceChildren(made("li", "Nothing found", { className: "none" }));
    found.hidden = !words.length;
    found.firstElementChild?.classList.add("chosen");
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      choose(event.key === "ArrowDown" ? 1 : -1);
      event.preventDefault();
    }
    if (event.key === "Enter") found.querySelector(".chosen button")?.click();
    if (event.key === "Escape") {
      search.value = "";
      found.hidden = true;
      search.blur();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input")) return;
    event.preventDefault();
    search.focus();
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest(".search")) found.hidden = true;
  });
})();

"use strict";
// What the page does without asking its server: the address, the list, the step bar, light and dark, saving figures.
// Text from runs is set as text and never as markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const keep = () => window.dash_clientside.no_update;
  const set = (id, props) => window.dash_clientside.set_props(id, props);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // The address: which runs, view, step, choices and filters. Everything that is shown follows from it.
  let address = "";
  const params = () => new URLSearchParams(address);
  const go = (edit, push = true) => {
    const next = params();
    edit(next);
    const text = next.toString() ? `?${next}` : "";
    if (text === address) return;
    address = text;
    history[push ? "pushState" : "replaceState"](null, "", location.pathname + text);
    set("address", { data: text });
  };
  const put = (name, value) => (next) => (value === "" || value === null ? next.delete(name) : next.set(name, value));
  const forget = (next, ...names) =>
    [...next.keys()].filter((name) => names.includes(name) || name.startsWith("c.")).forEach((name) => next.delete(name));
  const choose = (keys) =>
    go((next) => {
      forget(next, "run", "step", "feature");
      keys.forEach((key) => next.append("run", key));
    });

  // Numbers as a person reads them.
  const short = (value) => {
    if (value === null || value === undefined) return "";
    if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(1);
    return value.toPrecision(3);
  };

  // The list.
  const lines = new Map();
  const spark = (points) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 100 24");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    if (points.length) {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      line.setAttribute("points", points.map(([x, y]) => `${(x * 100).toFixed(1)},${(2 + y * 20).toFixed(1)}`).join(" "));
      svg.append(line);
    }
    return svg;
  };
  const lineOf = (row) => {
    const line = make("div", "run");
    line.setAttribute("role", "listitem");
    const box = make("input");
    box.type = "checkbox";
    box.dataset.check = row.key;
    box.setAttribute("aria-label", `Lay ${row.name} over others`);
    box.disabled = row.state === "damaged" || row.kind === "sweep";
    const open = make("button", "open");
    open.dataset.run = row.key;
    open.title = row.fault || row.name;
    const top = make("span", "top");
    const name = make("span", "name");
    name.append(make("bdi", "", row.name)); // a long path loses its beginning, as the style has it
    top.append(name, make("span", `badge ${row.state}`, row.state));
    const seed = row.seed === null ? "" : `seed ${row.seed}`;
    open.append(top, make("span", "sub", row.fault || [row.task, seed, row.size].filter(Boolean).join(" · ")));
    if (row.kind === "run" && !row.fault) {
      const low = make("span", "low");
      const step = row.step === null ? "not started" : `step ${row.step.toLocaleString("en")} of ${row.n_steps.toLocaleString("en")}`;
      low.append(spark(row.spark), make("span", "numbers", `${step}${row.loss === null ? "" : ` · loss ${short(row.loss)}`}`));
      open.append(low);
    }
    line.append(box, open);
    return line;
  };
  const words = (row) => [row.name, row.task, row.state, row.run_id, row.seed === null ? "" : "seed"].join(" ").toLowerCase();
  const list = (json) => {
    if (!json) return keep();
    const rows = JSON.parse(json);
    const now = params();
    const asked = (now.get("q") || "").toLowerCase();
    const seed = /\bseed[\s:=]*(\d+)/.exec(asked);
    const wanted = asked.replace(seed ? seed[0] : "", "").split(/\s+/).filter(Boolean);
    const states = now.getAll("state");
    const chosen = now.getAll("run");
    const shown = rows.filter((row) => {
      const text = words(row);
      if (seed && row.seed !== Number(seed[1])) return false;
      return wanted.every((word) => text.includes(word)) && (!states.length || states.includes(row.state));
    });
    const known = new Set(rows.map((row) => row.key));
    [...lines.keys()].filter((key) => !known.has(key)).forEach((key) => lines.delete(key));
    const elements = shown.map((row) => {
      const text = JSON.stringify(row);
      let line = lines.get(row.key);
      if (!line || line.text !== text) {
        const fresh = lineOf(row);
        if (line) line.element.replaceWith(fresh);
        line = { text, element: fresh };
        lines.set(row.key, line);
      }
      const on = chosen.includes(row.key);
      line.element.classList.toggle("on", on);
      line.element.firstChild.checked = on;
      return line.element;
    });
    const place = byId("runs");
    if (elements.length !== place.children.length || elements.some((element, at) => place.children[at] !== element)) {
      place.replaceChildren(...elements);
    }
    const counts = {};
    rows.forEach((row) => (counts[row.state] = (counts[row.state] || 0) + 1));
    document.querySelectorAll("#states [data-state]").forEach((chip) => {
      const state = chip.dataset.state;
      chip.hidden = !counts[state];
      chip.textContent = `${state} ${counts[state] || 0}`;
      chip.classList.toggle("on", states.includes(state));
      chip.setAttribute("aria-pressed", states.includes(state));
    });
    const all = rows.length === shown.length ? `${rows.length}` : `${shown.length} of ${rows.length}`;
    byId("count").textContent = rows.length ? `${all} listed${chosen.length > 1 ? `, ${chosen.length} laid over each other` : ""}` : "";
    return shown.length;
  };

  // The step bar: one slider for everything, a mark at each checkpoint.
  let training = null; // steps, places and texts of the run that is shown
  let waiting = 0;
  const index = () => {
    const step = params().get("step");
    if (!training || !training.steps.length) return -1;
    if (step === null) return training.steps.length - 1;
    let best = 0;
    training.steps.forEach((one, at) => {
      if (Math.abs(one - step) < Math.abs(training.steps[best] - step)) best = at;
    });
    return best;
  };
  const moveTo = (at) => {
    if (!training || at < 0 || at >= training.steps.length) return;
    showStep(at);
    clearTimeout(waiting); // while the slider is dragged, views wait for it to rest
    waiting = setTimeout(() => go(put("step", training.steps[at]), false), 90);
  };
  const showStep = (at, withLine = true) => {
    const slider = byId("step-slider");
    if (!slider) return;
    slider.value = at;
    const text = `step ${training.steps[at].toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", text);
    byId("step-text").textContent = text;
    byId("step-more").textContent = [training.texts[at], `checkpoint ${at + 1} of ${training.steps.length}`].filter(Boolean).join(" · ");
    if (withLine) drawLine(at);
  };
  const stepBar = () => {
    const bar = byId("step-bar");
    const n = training ? training.steps.length : 0;
    bar.hidden = n < 1;
    if (bar.hidden) return;
    const key = JSON.stringify(training.steps);
    if (bar.dataset.steps !== key) {
      bar.dataset.steps = key;
      const slider = make("input");
      Object.assign(slider, { type: "range", id: "step-slider", min: 0, max: n - 1, step: 1 });
      slider.setAttribute("aria-label", "Training step of all views");
      slider.addEventListener("input", () => moveTo(Number(slider.value)));
      const button = (text, by, title) => {
        const one = make("button", "step-by", text);
        one.title = title;
        one.addEventListener("click", () => moveTo(Number(slider.value) + by));
        return one;
      };
      const head = make("div", "step-head");
      const text = make("strong");
      text.id = "step-text";
      const more = make("span");
      more.id = "step-more";
      head.append(text, more);
      const marks = make("div", "marks");
      const every = Math.max(1, Math.ceil(n / 200));
      for (let at = 0; at < n; at += every) {
        const mark = make("i");
        mark.style.left = `${n > 1 ? (100 * at) / (n - 1) : 50}%`;
        marks.append(mark);
      }
      const track = make("div", "track");
      track.append(slider, marks);
      const row = make("div", "step-row");
      row.append(button("‹", -1, "Checkpoint before"), track, button("›", 1, "Checkpoint after"));
      bar.replaceChildren(head, row);
    }
    showStep(index(), false); // a new figure brings its line
  };

  // Figures. They come without a look of their own: the page has two.
  const graph = (name) => document.querySelector(`#${name}-graph .js-plotly-plot`);
  const figures = { timeline: null, view: null };
  const emptyFigure = { data: [], layout: { height: 10, xaxis: { visible: false }, yaxis: { visible: false } } };
  const note = (name, texts, className) => {
    byId(`${name}-note`).replaceChildren(...texts.map((text) => make("p", className, text)));
  };
  const choices = (name, found, change) => {
    const place = byId(`${name}-choices`);
    place.replaceChildren(
      ...Object.entries(found || {})
        .filter(([, choice]) => choice.options.length > 1)
        .map(([key, choice]) => {
          const label = make("label", "choice");
          const select = make("select");
          choice.options.forEach((option) => {
            const one = make("option", "", option.name);
            one.value = option.value;
            select.append(one);
          });
          select.value = choice.value;
          select.dataset.choice = key;
          select.addEventListener("change", () => change(key, select.value));
          label.append(make("span", "", key.replaceAll("_", " ")), select);
          return label;
        }),
    );
  };
  // While a run is trained, each new figure has longer axes. What the reader zoomed to, which no figure had, stays.
  const given = { revision: null, ranges: new Set() };
  const withZoom = (layout, revision) => {
    const plot = graph("timeline");
    const first = given.revision !== revision;
    if (first) Object.assign(given, { revision, ranges: new Set() });
    const kept = {};
    Object.keys(layout).forEach((key) => {
      if (!/^[xy]axis\d*$/.test(key) || !layout[key].range) return;
      given.ranges.add(key + JSON.stringify(layout[key].range));
      const axis = !first && plot && plot.layout && plot.layout[key];
      const now = axis && !axis.autorange && axis.range; // a double click has all of it shown
      if (now && !given.ranges.has(key + JSON.stringify(now))) kept[key] = { ...layout[key], range: [...now] };
    });
    return { ...layout, ...kept };
  };
  const drawnFor = {};
  const received = (name, json, theme, templates, change) => {
    const card = byId(`${name}-card`);
    const data = json ? JSON.parse(json) : null;
    figures[name] = data && data.figure ? JSON.parse(data.figure) : null;
    card.classList.toggle("without", !figures[name]);
    if (!data) return emptyFigure;
    if (data.error) {
      note(name, [data.error], "fault");
      choices(name, {}, change);
      return emptyFigure;
    }
    note(name, data.faults || [], "fault");
    choices(name, data.choices, change);
    const { data: traces, layout } = figures[name];
    if ("step" in data) layout.meta = { ...layout.meta, step: data.step }; // the nearest there is, not always the slider's
    byId(`${name}-graph`).style.height = `${data.height}px`;
    const now = params();
    const revision = [...now.getAll("run"), name === "view" ? data.name : ""].join("\n");
    // Another kind of figure in the same place: plotly would set titles by the ticks of the one before.
    const plot = graph(name);
    if (plot && drawnFor[name] !== undefined && drawnFor[name] !== revision) window.Plotly.purge(plot);
    drawnFor[name] = revision;
    const zoomed = name === "timeline" ? withZoom(layout, revision) : layout;
    return { data: traces, layout: { ...zoomed, template: templates[theme], uirevision: revision } };
  };
  // Of a damaged run, the head of the page says what is wrong.
  const saidAbove = (data) => !!data.error && !!document.querySelector("#head .fault");
  const timeline = (json, theme, templates) => {
    const shown = received("timeline", json, theme, templates, (_, value) => go(put("feature", value)));
    const data = json ? JSON.parse(json) : null;
    byId("timeline-card").hidden = !data || saidAbove(data);
    byId("timeline-title").textContent = (data && data.title) || "Over training";
    if (data) byId("busy").hidden = true;
    training = data && data.steps ? data : null;
    stepBar();
    if (shown === emptyFigure) return shown;
    return { data: shown.data, layout: { ...shown.layout, shapes: shapes(index()) } };
  };
  const holdSaves = (on) => {
    if (on) figures.view = null;
    byId("view-saves").classList.toggle("waiting", on);
  };
  const view = (json, theme, templates) => {
    const data = json ? JSON.parse(json) : null;
    holdSaves(false);
    byId("view-card").hidden = !data || saidAbove(data);
    return received("view", json, theme, templates, (key, value) => go(put(`c.${key}`, value)));
  };
  // A line through all panels at the step; step 0 has no place on a logarithmic axis.
  const shapes = (at) => {
    const own = (figures.timeline && figures.timeline.layout.shapes) || [];
    const place = training && at >= 0 ? training.places[at] : 0;
    if (!(place > 0)) return own;
    const color = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
    const line = { width: 1.5, dash: "dot", color };
    return [...own, { type: "line", name: "step", xref: "x", yref: "paper", x0: place, x1: place, y0: 0, y1: 1, line }];
  };
  const drawLine = (at) => {
    const plot = graph("timeline");
    // Not before the first figure is drawn: plotly would draw an empty one over it.
    if (plot && plot.data && plot.data.length && figures.timeline && training) window.Plotly.relayout(plot, { shapes: shapes(at) });
  };
  // A click that is no drag sets the nearest checkpoint.
  const clicks = () => {
    let from = null;
    window.addEventListener("mousedown", (event) => (from = event.target.closest("#timeline-graph") ? event : null), true);
    window.addEventListener(
      "mouseup",
      (event) => {
        const plot = graph("timeline");
        if (!from || !plot || !training || Math.hypot(event.clientX - from.clientX, event.clientY - from.clientY) > 3) return;
        const axis = plot._fullLayout && plot._fullLayout.xaxis;
        const x = event.clientX - plot.getBoundingClientRect().left - axis._offset;
        const y = event.clientY - plot.getBoundingClientRect().top;
        const size = plot._fullLayout._size;
        if (!axis || x < 0 || x > axis._length || y < size.t || y > size.t + size.h) return;
        const place = Math.log(axis.p2d(x));
        let best = -1;
        training.places.forEach((one, at) => {
          if (one > 0 && (best < 0 || Math.abs(Math.log(one) - place) < Math.abs(Math.log(training.places[best]) - place))) best = at;
        });
        moveTo(best);
      },
      true,
    );
  };

  const lastTab = { run: null, name: "", names: [] };
  const tabs = (json, open, chosen) => {
    const found = json ? JSON.parse(json) : null;
    const place = byId("view-tabs");
    if (!found || found.error || chosen.length !== 1) {
      place.replaceChildren();
      return 0;
    }
    const names = found.tabs.map((one) => one.name);
    let now = names.includes(open) ? open : found.first;
    // A lens that has finished is no reason to leave what is being read.
    const grown = lastTab.run === chosen[0] && !same(lastTab.names, names);
    if (grown && now !== open && now !== lastTab.name && names.includes(lastTab.name)) {
      now = lastTab.name;
      setTimeout(() => go(put("view", lastTab.name), false));
    }
    Object.assign(lastTab, { run: chosen[0], name: now, names });
    place.replaceChildren(
      ...found.tabs.map((one) => {
        const tab = make("button", one.name === now ? "view-tab on" : "view-tab", one.title);
        tab.setAttribute("role", "tab");
        tab.setAttribute("aria-selected", one.name === now);
        tab.dataset.view = one.name;
        tab.title = one.question;
        return tab;
      }),
    );
    return names.length;
  };

  // Lenses in the background: a line each, which stays while what it says changes, so that open options stay open.
  const lensLines = new Map();
  const field = (option) => {
    const label = make("label", "field");
    label.title = option.help;
    const shown = option.default === null ? "" : String(option.default);
    let input;
    if (option.kind === "flag" || option.kind === "choice") {
      input = make("select");
      const values = option.kind === "flag" ? ["", "yes", "no"] : ["", ...option.values];
      values.forEach((value) => input.append(Object.assign(make("option", "", value || `${shown || "default"}`), { value })));
    } else {
      input = make("input");
      input.placeholder = shown || (option.kind === "list" ? "several, with blanks" : "default");
    }
    input.dataset.option = option.name;
    label.append(make("span", "", option.name.replaceAll("_", " ")), input);
    return label;
  };
  const lensLine = (lens) => {
    const element = make("div", "lens");
    const text = make("div", "lens-text");
    text.append(make("strong", "", lens.name.replaceAll("_", " ")), make("span", "question", lens.question));
    const button = make("button", "start", "Start");
    button.dataset.start = lens.name;
    const state = make("div", "lens-state");
    const options = make("details", "lens-options");
    options.append(make("summary", "", "Options"));
    options.addEventListener("toggle", () => {
      if (options.open && options.children.length === 1) {
        const fields = make("div", "fields");
        fields.append(...lens.options.map(field));
        options.append(fields);
      }
    });
    element.append(text, button, options, state);
    return { element, button, state, said: "" };
  };
  const progress = (job) => {
    const parts = [make("span", `badge ${job.state}`, job.state)];
    if (job.progress && (job.state === "running" || job.state === "queued")) {
      const bar = make("progress");
      if (job.progress.total) Object.assign(bar, { max: job.progress.total, value: job.progress.done });
      const count = job.progress.total ? `${job.progress.done} of ${job.progress.total}` : `${job.progress.done}`;
      parts.push(bar, make("span", "", `${job.progress.what} ${count} ${job.progress.detail}`));
    }
    if (job.state === "failed") parts.push(make("pre", "", job.lines || "It ended without a word."));
    return parts;
  };
  const lenses = (json, jobsJson, askedJson) => {
    const found = json ? JSON.parse(json) : null;
    byId("lenses-card").hidden = !found || !!found.error;
    if (!found || found.error) return 0;
    const working = jobsJson ? JSON.parse(jobsJson).jobs || [] : [];
    const asked = askedJson ? JSON.parse(askedJson) : {};
    const elements = found.lenses.map((lens) => {
      if (!lensLines.has(lens.name)) lensLines.set(lens.name, lensLine(lens));
      const line = lensLines.get(lens.name);
      const job = working.find((one) => one.lens === lens.name);
      const busy = !!job && (job.state === "running" || job.state === "queued");
      line.button.textContent = busy ? "Stop" : "Start";
      line.button.classList.toggle("busy", busy);
      const wrong = asked.error && asked.lens === lens.name && asked.run === params().get("run") ? asked.error : "";
      const said = JSON.stringify([job || null, wrong]);
      if (said !== line.said) {
        line.said = said;
        line.state.replaceChildren(...(job ? progress(job) : []), ...(wrong ? [make("p", "fault", wrong)] : []));
      }
      return line.element;
    });
    const place = byId("lenses");
    if (elements.some((element, at) => place.children[at] !== element)) place.replaceChildren(...elements);
    return working.length;
  };
  const askFor = (button) => {
    const line = button.closest(".lens");
    const options = {};
    line.querySelectorAll("[data-option]").forEach((one) => {
      if (one.value.trim()) options[one.dataset.option] = one.value.trim();
    });
    const what = button.classList.contains("busy") ? "stop" : "start";
    set("ask", { data: { what, run: params().getAll("run")[0], lens: button.dataset.start, options, at: Date.now() } });
  };

  // A saved image is a page of a paper: always light, at its size, without what only works on a screen.
  const save = (name, format) => {
    const { data, layout } = figures[name];
    const template = window.qflTemplates.light;
    const meta = layout.meta || {};
    const [width, height] = [meta.width || 672, meta.height || layout.height || 450];
    const step = layout.meta && "step" in layout.meta ? `-step${layout.meta.step}` : "";
    const filename = `${meta.filename || name}-${(params().getAll("run")[0] || "runs").replace(/[^\w.-]+/g, "-")}${step}`;
    const options = { format, filename, width, height, scale: format === "png" ? 3 : 1 };
    const plain = { ...layout, template, width, height, sliders: [], updatemenus: [] };
    return window.Plotly.downloadImage({ data, layout: plain }, options);
  };

  // Light and dark.
  const prefers = window.matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem("qfl-theme");
    } catch {
      return null;
    }
  };
  const themed = (theme) => {
    document.documentElement.dataset.theme = theme;
    byId("toggle-theme").textContent = theme === "dark" ? "Light" : "Dark";
    return theme;
  };
  const wantedTheme = () => stored() || (prefers.matches ? "dark" : "light");

  const start = () => {
    address = location.search;
    window.addEventListener("popstate", () => {
      address = location.search;
      byId("search").value = params().get("q") || "";
      set("address", { data: address });
    });
    prefers.addEventListener("change", () => set("theme", { data: themed(wantedTheme()) }));
    document.addEventListener("click", (event) => {
      const target = event.target.closest("[data-run],[data-view],[data-state],[data-search],[data-save],[data-start],#toggle-theme,#toggle-list,.saves a");
      if (!target) return;
      const { run, view: name, state, search, save: format, of } = target.dataset;
      if (run !== undefined) {
        choose([run]);
        document.body.classList.remove("with-list");
      } else if (name !== undefined) {
        go((next) => {
          forget(next);
          next.set("view", name);
        });
      } else if (state !== undefined) {
        go((next) => {
          const all = next.getAll("state");
          next.delete("state");
          (all.includes(state) ? all.filter((one) => one !== state) : [...all, state]).forEach((one) => next.append("state", one));
        });
      } else if (search !== undefined) {
        set("search", { value: search });
      } else if (format !== undefined) {
        if (figures[of]) save(of, format);
      } else if (target.dataset.start !== undefined) {
        askFor(target);
      } else if (target.id === "toggle-theme") {
        const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
        try {
          localStorage.setItem("qfl-theme", next);
        } catch {
          // A browser that stores nothing forgets it.
        }
        set("theme", { data: themed(next) });
      } else if (target.id === "toggle-list") {
        document.body.classList.toggle("with-list");
      } else {
        const next = params();
        next.set("of", target.id.replace("-csv", ""));
        target.href = `table.csv?${next}`;
      }
    });
    document.addEventListener("change", (event) => {
      const key = event.target.dataset && event.target.dataset.check;
      if (key === undefined) return;
      const all = params().getAll("run");
      choose(event.target.checked ? [...all.filter((one) => one !== key), key] : all.filter((one) => one !== key));
    });
    clicks();
    const searched = params().get("q");
    if (searched) set("search", { value: searched });
    return [address, themed(wantedTheme())];
  };
  const search = (value) => {
    if (value === undefined || value === null) return keep();
    go(put("q", value), false);
    return value.length;
  };
  const split = (text, ...shown) => {
    if (text === undefined || text === null) return shown.map(keep);
    const now = params();
    const step = now.get("step");
    const picked = Object.fromEntries([...now].filter(([name]) => name.startsWith("c.")).map(([name, value]) => [name.slice(2), value]));
    const parts = [
      [...new Set(now.getAll("run"))],
      now.get("view") || "",
      step !== null && /^\d{1,15}$/.test(step) ? Number(step) : null,
      picked,
      now.get("feature") || "",
    ];
    // Until the first figure of other runs is there: the first of all waits for PyTorch.
    if (!same(parts[0], shown[0])) byId("busy").hidden = !parts[0].length;
    // Until the figure of another view is there, the one that is shown is not to be saved as it.
    if (!same(parts[0], shown[0]) || parts[1] !== shown[1]) holdSaves(true);
    return parts.map((part, at) => (same(part, shown[at]) ? keep() : part));
  };
  const line = () => {
    if (training) showStep(index());
    return keep();
  };

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.view = {
    start, list, search, split, line, tabs, lenses,
    timeline: (json, theme, templates) => {
      window.qflTemplates = templates;
      return timeline(json, theme, templates);
    },
    view: (json, theme, templates) => view(json, theme, templates),
  };
})();

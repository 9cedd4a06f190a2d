// What a drawn figure covers: boxes of texts, legends, plot areas, buttons, in pixels from its upper left corner.
(plot) => {
  const origin = plot.getBoundingClientRect();
  const box = (element) => {
    const r = element.getBoundingClientRect();
    return [r.left - origin.left, r.top - origin.top, r.right - origin.left, r.bottom - origin.top];
  };
  const seen = (element) => {
    for (let e = element; e && e !== plot; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (style.display === "none" || style.visibility === "hidden" || Number(style.opacity) === 0) return false;
    }
    return element.getBoundingClientRect().width > 0;
  };
  const kind = (element) => {
    const of = (selector) => element.closest(selector);
    if (of(".legend")) return "legend " + [...of(".legend").classList].at(-1);
    if (of(".annotation")) {
      const [x, y] = ((a) => [a.xref, a.yref])(plot._fullLayout.annotations[of(".annotation").dataset.index]);
      return x === "paper" || y === "paper" ? "annotation" : "mark";
    }
    if (of(".updatemenu-container")) return "button";
    if (of(".slider-container")) return "slider";
    if (of(".g-gtitle")) return "title";
    if (of(".colorbar")) return "colorbar";
    if (of(".plot") || of(".heatmap-label, .textpoint, .bartext")) return "trace";
    return element.getAttribute("class") || element.parentElement.getAttribute("class") || "?";
  };
  const written = [...plot.querySelectorAll(".main-svg text")]
    .filter((t) => t.textContent.trim() && t.textContent.trim() !== "×" && !t.closest(".hoverlayer"));
  // A text of several lines has a box for each: its lines may be of different widths.
  const lines = (t) => {
    const found = [...t.querySelectorAll("tspan.line")].filter((line) => line.textContent.trim());
    return found.length ? found : [t];
  };
  const angle = (t) => Number((/rotate\(([-\d.]+)/.exec(t.getAttribute("transform")) || [0, 0])[1]);
  const texts = written.filter(seen).flatMap(lines)
    .map((t) => ({
      kind: kind(t.closest("text")), text: t.textContent.slice(0, 70), box: box(t), angle: angle(t.closest("text")),
      sizes: [t, ...t.querySelectorAll("tspan")]
        .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
        .filter((e) => !/(super|sub)|^-?0\.\d+em/.test(e.style.baselineShift || "") && !(e.getAttribute("dy") || "").startsWith("-"))
        .map((e) => parseFloat(getComputedStyle(e).fontSize)),
    }));
  const areas = Object.entries(plot._fullLayout._plots).map(([name, p]) => ({
    name, box: [p.xaxis._offset, p.yaxis._offset, p.xaxis._offset + p.xaxis._length, p.yaxis._offset + p.yaxis._length],
  }));
  const boxes = (selector, of) => [...plot.querySelectorAll(selector)].filter(seen).map((e) => ({ name: of(e), box: box(e) }));
  const legends = boxes(".legend > .bg, [class^=legend] > .bg", (e) => [...e.parentElement.classList].at(-1));
  const bar = plot.querySelector(".modebar");
  return {
    texts, areas, legends,
    // Labels of an axis that plotly drops where they do not fit.
    dropped: written.filter((t) => !seen(t) && t.closest(".xtick, .ytick, .x2tick, .y2tick")).map((t) => t.textContent),
    controls: boxes(".updatemenu-item-rect, .slider-rail-touch-rect", (e) => e.getAttribute("class")),
    colorbars: boxes(".colorbar .cbfills, .colorbar .cbbg", (e) => e.getAttribute("class")),
    toolbar: bar ? box(bar) : null,
    size: [plot._fullLayout.width, plot._fullLayout.height],
  };
}

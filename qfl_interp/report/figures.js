"use strict";
// Draws a page's figures, in its light or dark look, and saves them.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const templates = { light: read("template-light"), dark: read("template-dark") };
  const template = () => templates[window.qflTheme()];
  const plots = [...document.querySelectorAll(".plot")];
  // Titles and legends are laid out for a page's text block: a narrower figure is drawn so wide and shown smaller.
  const LEAST_WIDTH = 740;

  // An exported image is a page of a paper: always light, without the controls that only work on screen.
  const save = (plot, format) => {
    // A slider stands `pad.t` below the plot area; without it, 12 px less hold the axis.
    const [slider] = plot.layout.sliders || [];
    const bottom = slider ? slider.pad.t - 12 : plot.layout.margin.b;
    const { filename, width } = plot.layout.meta;
    const height = plot.layout.meta.height - (plot.layout.margin.b - bottom);
    const layout = {
      ...plot.layout, template: templates.light, sliders: [], updatemenus: [], width, height,
      margin: { ...plot.layout.margin, b: bottom },
    };
    return Plotly.downloadImage(
      { data: plot.data, layout },
      { format, filename, width, height, scale: format === "png" ? 3 : 1 },
    );
  };

  // On a narrow page a figure is shown whole, smaller, or at its full size in a box that scrolls.
  const fit = (plot) => {
    const frame = plot.parentElement;
    const room = frame.clientWidth;
    const small = room < LEAST_WIDTH;
    frame.parentElement.classList.toggle("narrow", small);
    const scale = small && !frame.classList.contains("full") ? room / LEAST_WIDTH : 1;
    plot.style.width = small ? `${LEAST_WIDTH}px` : "";
    plot.style.transform = scale < 1 ? `scale(${scale})` : "";
    frame.style.height = scale < 1 ? `${Math.ceil(plot.offsetHeight * scale)}px` : "";
  };

  const draw = (plot, index) => {
    const { data, layout, frames } = read(`figure-${index}`);
    fit(plot);
    return Plotly.newPlot(plot, {
      data,
      layout: { ...layout, template: template() },
      frames: frames || [],
      // Buttons over a figure would cover its legend or title; dragging zooms, a double click goes back.
      config: { displayModeBar: false, showSendToCloud: false, plotlyServerURL: "", responsive: true },
    });
  };

  for (const button of document.querySelectorAll("button[data-format]")) {
    button.addEventListener("click", () => save(plots[Number(button.dataset.figure)], button.dataset.format));
  }
  for (const button of document.querySelectorAll("button[data-enlarge]")) {
    button.addEventListener("click", () => {
      const plot = plots[Number(button.dataset.enlarge)];
      const full = plot.parentElement.classList.toggle("full");
      button.setAttribute("aria-pressed", String(full));
      button.textContent = full ? "Fit to page" : "Full size";
      fit(plot);
    });
  }
  window.addEventListener("resize", () => plots.forEach(fit));
  document.addEventListener("qfl-theme", () => {
    plots.forEach((plot) => Plotly.relayout(plot, { template: template() }));
  });
  Promise.all(plots.map(draw)).then(() => document.documentElement.setAttribute("data-drawn", String(plots.length)));
})();

"use strict";
// Draws a page's figures, in its light or dark look, and saves them.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const templates = { light: read("template-light"), dark: read("template-dark") };
  const template = () => templates[window.qflTheme()];
  const plots = [...document.querySelectorAll(".plot")];

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

  // A finger that moves over curves scrolls the figure and the page; plotly would zoom and hold the page.
  const letScroll = (event) => {
    if (event.target.closest(".draglayer")) event.stopPropagation();
  };

  const draw = (plot, index) => {
    const { data, layout, frames } = read(`figure-${index}`);
    plot.addEventListener("touchstart", letScroll, { capture: true, passive: true });
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
  document.addEventListener("qfl-theme", () => {
    plots.forEach((plot) => Plotly.relayout(plot, { template: template() }));
  });
  Promise.all(plots.map(draw)).then(() => document.documentElement.setAttribute("data-drawn", String(plots.length)));
})();

"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const templates = { light: read("template-light"), dark: read("template-dark") };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const template = () => (dark.matches ? templates.dark : templates.light);
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
  const saveButton = (format) => ({
    name: `save-${format}`,
    title: `Save as ${format.toUpperCase()} at paper size`,
    icon: format === "svg" ? Plotly.Icons.camera : Plotly.Icons.disk,
    click: (plot) => save(plot, format),
  });

  const draw = (plot, index) => {
    const { data, layout, frames } = read(`figure-${index}`);
    return Plotly.newPlot(plot, {
      data,
      layout: { ...layout, template: template() },
      frames: frames || [],
      config: {
        displaylogo: false,
        showSendToCloud: false,
        plotlyServerURL: "",
        responsive: true,
        modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d", "autoScale2d"],
        modeBarButtonsToAdd: [saveButton("svg"), saveButton("png")],
      },
    });
  };

  // A link must not put a heading under the bar of links, which takes more lines the more sections there are.
  document.documentElement.style.scrollPaddingTop = `${document.querySelector("nav").offsetHeight + 12}px`;
  for (const button of document.querySelectorAll("button[data-format]")) {
    button.addEventListener("click", () => save(plots[Number(button.dataset.figure)], button.dataset.format));
  }
  dark.addEventListener("change", () => plots.forEach((plot) => Plotly.relayout(plot, { template: template() })));
  Promise.all(plots.map(draw)).then(() => document.documentElement.setAttribute("data-drawn", String(plots.length)));
})();

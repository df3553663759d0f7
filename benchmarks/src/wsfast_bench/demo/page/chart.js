"use strict";

// A line chart of the last minute on a canvas.
class Chart {
  // series: [{name, of: sample => number or null}]; the name is that of a colour of the style sheet.
  // format: number => text, for the axis.
  constructor(canvas, series, format) {
    this.canvas = canvas;
    this.series = series;
    this.format = format;
    this.label = canvas.getAttribute("aria-label");
    this.samples = [];
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(samples) {
    this.samples = samples;
    this.draw();
    const last = samples[samples.length - 1];
    const told = this.series.map(({name, of}) => [name, last && of(last)]).filter(([, value]) => value != null);
    this.canvas.setAttribute(
      "aria-label", `${this.label}: ${told.map(([name, value]) => `${name} ${this.format(value)}`).join(", ") || "nothing yet"}`);
  }

  draw() {
    const {canvas} = this;
    const width = canvas.clientWidth, height = canvas.clientHeight, scale = devicePixelRatio || 1;
    if (!width || !height) return;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    context.scale(scale, scale);
    context.font = `11px ${style.fontFamily}`;
    context.textBaseline = "middle";

    const values = this.samples.flatMap(sample => this.series.map(({of}) => of(sample))).filter(value => value != null);
    const step = niceStep(Math.max(0, ...values) / 4);
    const top = Math.max(step, Math.ceil(Math.max(0, ...values) / step) * step);
    const steps = Math.round(top / step);
    const labels = Array.from({length: steps + 1}, (_, index) => this.format(index * step));
    const left = Math.max(...labels.map(label => context.measureText(label).width)) + 8;
    const right = width - 2, above = 8, below = height - 18;
    const y = value => below - (value / top) * (below - above);

    labels.forEach((label, index) => {
      const at = Math.round(y(index * step)) + 0.5;
      context.strokeStyle = style.getPropertyValue("--grid");
      context.beginPath();
      context.moveTo(left, at);
      context.lineTo(right, at);
      context.stroke();
      context.fillStyle = style.getPropertyValue("--quiet");
      context.textAlign = "right";
      context.fillText(label, left - 6, at);
    });
    context.textAlign = "left";
    context.fillText("a minute ago", left, height - 7);
    context.textAlign = "right";
    context.fillText("now", right, height - 7);

    if (!this.samples.length) return;
    const now = this.samples[this.samples.length - 1].time;
    const x = time => right - ((now - time) / MINUTE) * (right - left);
    context.save();
    context.beginPath();
    context.rect(left, 0, right - left + 2, height);
    context.clip();
    context.lineWidth = 2;
    context.lineJoin = "round";
    for (const {name, of} of this.series) {
      context.strokeStyle = context.fillStyle = style.getPropertyValue(`--${name}`);
      const points = this.samples.filter(sample => of(sample) != null).map(sample => [x(sample.time), y(of(sample))]);
      context.beginPath();
      points.forEach(([px, py], index) => (index ? context.lineTo(px, py) : context.moveTo(px, py)));
      context.stroke();
      if (points.length) {
        context.beginPath();
        context.arc(...points[points.length - 1], 3, 0, 2 * Math.PI);
        context.fill();
      }
    }
    context.restore();
  }
}

const MINUTE = 60;

// The smallest of 1, 2, 5 and their multiples by powers of ten that is no less.
function niceStep(least) {
  if (least <= 0) return 0.25;
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map(factor => factor * power).find(step => step >= least * 0.999);
}

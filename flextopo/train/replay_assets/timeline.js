// The strip above the slider: loss over time, ticks of decisions and differences, the place in time.

const STRIP = { inset: 8, rows: 7, hours: 14 };

class Timeline {
  constructor(canvas, tape, onScrub) {
    Object.assign(this, { canvas, tape });
    this.context = canvas.getContext("2d");
    const scrub = (event) => {
      const rect = canvas.getBoundingClientRect();
      const part = (event.clientX - rect.left - STRIP.inset) / (rect.width - 2 * STRIP.inset);
      onScrub(Math.min(1, Math.max(0, part)) * tape.end);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      scrub(event);
    });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) scrub(event); });
    this.resize();
  }

  resize() {
    this.ratio = window.devicePixelRatio || 1;
    this.width = this.canvas.parentElement.clientWidth;
    this.rows = this.tape.sides.length + (this.tape.differences.length ? 1 : 0);
    this.curves = this.width < 600 ? 30 : 46;
    this.height = this.curves + this.rows * STRIP.rows + STRIP.hours;
    this.canvas.style.height = `${this.height}px`;
    this.canvas.width = Math.round(this.width * this.ratio);
    this.canvas.height = Math.round(this.height * this.ratio);
    this.still = null;
  }

  x(time) {
    return STRIP.inset + (time / this.tape.end) * (this.width - 2 * STRIP.inset);
  }

  // Everything but the place in time is drawn once and kept.
  draw(time) {
    const { context, ratio } = this, colour = colours();
    if (!this.still) {
      this.still = document.createElement("canvas");
      Object.assign(this.still, { width: this.canvas.width, height: this.canvas.height });
      const still = this.still.getContext("2d");
      still.scale(ratio, ratio);
      this.drawStill(still, colour);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(this.still, 0, 0);
    context.scale(ratio, ratio);
    context.fillStyle = colour("ink");
    context.fillRect(this.x(time) - 0.75, 0, 1.5, this.height - STRIP.hours);
  }

  drawStill(context, colour) {
    this.drawHours(context, colour);
    this.tape.sides.forEach((side, s) => {
      this.drawCurve(context, side, colour(s === 0 ? "side-a" : "side-b"));
    });
    this.drawTicks(context, colour);
  }

  drawHours(context, colour) {
    const { tape } = this, bottom = this.height - STRIP.hours;
    const steps = [900, 3600, 7200, 10800, 21600, 43200, 86400, 7 * 86400];
    const step = steps.find((s) => this.x(s) - this.x(0) > 64) || tape.end;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "bottom";
    for (let time = 0; time <= tape.end; time += step) {
      const x = Math.round(this.x(time));
      context.fillStyle = colour("line");
      context.fillRect(x, 0, 1, bottom);
      context.fillStyle = colour("label");
      const hour = time % 86400 === 0 && time > 0 ? `day ${time / 86400}` : clock(time % 86400).slice(0, 5);
      context.textAlign = time === 0 ? "left" : time === tape.end ? "right" : "center";
      context.fillText(hour, x, this.height);
    }
  }

  drawCurve(context, side, stroke) {
    const highest = Math.max(1e-9, ...this.tape.sides.map((s) => s.totalAt(s.time.length - 1)));
    context.strokeStyle = stroke;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.beginPath();
    for (let f = 0; f < side.time.length; f++) {
      const y = this.curves - 2 - (side.totalAt(f) / highest) * (this.curves - 6);
      context.lineTo(this.x(side.time[f]), y);
    }
    context.stroke();
  }

  drawTicks(context, colour) {
    const { tape } = this;
    const row = (r, times, fill) => {
      context.fillStyle = fill;
      for (const time of times) context.fillRect(this.x(time) - 0.5, this.curves + r * STRIP.rows + 1, 1, STRIP.rows - 2);
    };
    tape.sides.forEach((side, s) => {
      row(s, side.choices.map(({ frame }) => side.time[frame]), colour(s === 0 ? "side-a" : "side-b"));
    });
    row(tape.sides.length, tape.differences.map(({ moment }) => tape.times[moment]), colour("ink"));
  }
}

// The cluster on a canvas: the scene's boxes, enlarged by a factor that fits the page.

const SMALLEST = 0.72, LARGEST = 2.2; // screen pixels a unit of the scene

function colours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

class ClusterDrawing {
  constructor(canvas, tape, recording) {
    Object.assign(this, { canvas, tape, recording });
    this.context = canvas.getContext("2d");
    this.resize();
  }

  // As few columns as keep the cluster no higher than half of the window, as large as they allow.
  resize() {
    const frame = this.canvas.parentElement, width = frame.clientWidth;
    this.fit(width);
    if (frame.clientWidth < width) this.fit(frame.clientWidth); // a scroll bar has come
    frame.tabIndex = frame.scrollHeight > frame.clientHeight ? 0 : -1;
  }

  fit(width) {
    const { scene, numNodes } = this.tape;
    const highest = Math.max(300, 0.52 * window.innerHeight);
    const wide = scene.tile_width + scene.gap, high = scene.tile_height + scene.gap;
    let columns = 0, scale, rows;
    do {
      columns++;
      scale = Math.min(LARGEST, width / (columns * wide - scene.gap));
      rows = Math.ceil(numNodes / columns);
    } while (columns < numNodes && rows * high * scale > highest && width / ((columns + 1) * wide - scene.gap) > SMALLEST);
    this.ratio = window.devicePixelRatio || 1;
    Object.assign(this, { scale, columns });
    const across = (columns * wide - scene.gap) * scale, down = (rows * high - scene.gap) * scale;
    this.canvas.style.width = `${across}px`;
    this.canvas.style.height = `${down}px`;
    this.canvas.width = Math.round(across * this.ratio);
    this.canvas.height = Math.round(down * this.ratio);
  }

  origin(node) {
    const { scene } = this.tape;
    const row = Math.floor(node / this.columns), column = node % this.columns;
    return [column * (scene.tile_width + scene.gap), row * (scene.tile_height + scene.gap)];
  }

  // A box of the scene in whole device pixels.
  place([left, top], [x, y, width, height]) {
    const s = this.scale * this.ratio;
    const at = [Math.round((left + x) * s), Math.round((top + y) * s)];
    return [...at, Math.round((left + x + width) * s) - at[0], Math.round((top + y + height) * s) - at[1]];
  }

  // `marked` is {node, gpuMask, victims}; `other` is the side to compare with. Either may be missing.
  draw(marked, other) {
    const { context, tape, recording } = this, { scene, first } = tape;
    const colour = colours();
    const paint = Object.fromEntries(["page", "server", "socket", "numa_node", "label", "ink", "dot", "dot-edge"].map((n) => [n, colour(n)]));
    const uses = scene.uses.map((_, i) => colour(`use-${i}`));
    context.fillStyle = paint.page;
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.font = `${Math.max(7, 7.5 * this.scale) * this.ratio}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    for (let node = 0; node < tape.numNodes; node++) {
      const tile = scene.tiles[scene.node_model[node]], origin = this.origin(node);
      context.fillStyle = paint.server;
      context.fillRect(...this.place(origin, [0, 0, scene.tile_width, scene.tile_height]));
      context.fillStyle = paint.label;
      const [x, y] = this.place(origin, [3, 5, 0, 0]);
      context.fillText(String(node), x, y);
      for (const [kind, boxes] of [["socket", tile.sockets], ["numa_node", tile.numa_nodes]]) {
        context.fillStyle = paint[kind];
        for (const box of boxes) context.fillRect(...this.place(origin, box));
      }
      tile.gpus.forEach((box, gpu) => {
        const at = first[node] + gpu, use = recording.uses[at], cell = this.place(origin, box);
        context.fillStyle = uses[use];
        context.fillRect(...cell);
        this.drawMark(scene.uses[use].mark, cell, uses[0]);
        if (other && other.pods[at] !== recording.pods[at]) this.drawDot(cell, paint.dot, paint["dot-edge"]);
      });
    }
    if (marked) this.drawChoice(marked, paint);
  }

  drawMark(mark, [x, y, width, height], paper) {
    const { context } = this, inset = Math.round(width / 4);
    if (mark === "ring") {
      context.fillStyle = paper;
      context.fillRect(x + inset, y + inset, width - 2 * inset, height - 2 * inset);
    } else if (mark === "cross") {
      this.cross([x, y, width, height], paper, Math.max(1, width / 9), inset);
    }
  }

  cross([x, y, width, height], colour, thickness, inset) {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.beginPath();
    context.moveTo(x + inset, y + inset);
    context.lineTo(x + width - inset, y + height - inset);
    context.moveTo(x + width - inset, y + inset);
    context.lineTo(x + inset, y + height - inset);
    context.stroke();
  }

  drawDot([x, y, width, height], dot, edge) {
    const { context } = this, size = Math.max(2, Math.round(width / 4));
    context.fillStyle = edge;
    context.fillRect(x + width - size - 1, y + height - size - 1, size + 1, size + 1);
    context.fillStyle = dot;
    context.fillRect(x + width - size, y + height - size, size, size);
  }

  drawChoice({ node, gpuMask, victims }, paint) {
    const { context, tape, recording } = this, { scene, first } = tape;
    const origin = this.origin(node), tile = scene.tiles[scene.node_model[node]];
    const frame = (box, grow, thickness) => {
      const [x, y, width, height] = this.place(origin, box), d = grow * this.ratio;
      context.strokeStyle = paint.ink;
      context.lineWidth = thickness * this.ratio;
      context.strokeRect(x - d, y - d, width + 2 * d, height + 2 * d);
    };
    const gone = new Set(victims);
    recording.pods.forEach((pod, at) => {
      if (!gone.has(pod)) return;
      const there = tape.nodeOf(at);
      const box = scene.tiles[scene.node_model[there]].gpus[at - first[there]];
      const cell = this.place(this.origin(there), box), inset = Math.round(cell[2] / 5);
      this.cross(cell, paint["dot-edge"], Math.max(2, cell[2] / 4), inset);
      this.cross(cell, paint.dot, Math.max(1, cell[2] / 9), inset);
    });
    tile.gpus.forEach((box, gpu) => { if ((gpuMask >> gpu) & 1) frame(box, 0.5, 2); });
    frame([0, 0, scene.tile_width, scene.tile_height], -0.75, 1.5);
  }

  // Bring a node into view where the cluster is higher than its frame.
  reveal(node) {
    const frame = this.canvas.parentElement, { scene } = this.tape;
    const top = this.origin(node)[1] * this.scale, bottom = top + scene.tile_height * this.scale;
    if (top < frame.scrollTop || bottom > frame.scrollTop + frame.clientHeight) {
      frame.scrollTop = (top + bottom - frame.clientHeight) / 2;
    }
  }

  // The GPU under a point of the page, -1 = none.
  gpuAt(clientX, clientY) {
    const { tape } = this, { scene, first } = tape, rect = this.canvas.getBoundingClientRect();
    const x = (clientX - rect.left) / this.scale, y = (clientY - rect.top) / this.scale;
    const column = Math.floor(x / (scene.tile_width + scene.gap));
    const node = Math.floor(y / (scene.tile_height + scene.gap)) * this.columns + column;
    if (column >= this.columns || node < 0 || node >= tape.numNodes) return -1;
    const [left, top] = this.origin(node);
    const gpu = scene.tiles[scene.node_model[node]].gpus.findIndex(
      ([bx, by, w, h]) => x - left >= bx - 1 && x - left < bx + w + 1 && y - top >= by - 1 && y - top < by + h + 1);
    return gpu < 0 ? -1 : first[node] + gpu;
  }
}

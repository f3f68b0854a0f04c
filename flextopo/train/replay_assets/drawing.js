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
    let columns = 1, made, next = arrange(scene, numNodes, 1), scale;
    do {
      made = next;
      scale = Math.min(LARGEST, width / made.width);
      next = arrange(scene, numNodes, ++columns);
    } while (columns <= numNodes && (made.height + scene.gap) * scale > highest && width / next.width > SMALLEST);
    this.ratio = window.devicePixelRatio || 1;
    Object.assign(this, { scale, made });
    const across = made.width * scale, down = made.height * scale;
    this.canvas.style.width = `${across}px`;
    this.canvas.style.height = `${down}px`;
    this.canvas.width = Math.round(across * this.ratio);
    this.canvas.height = Math.round(down * this.ratio);
  }

  origin(node) {
    return this.made.origins[node];
  }

  // A box of the scene in whole device pixels.
  place([left, top], [x, y, width, height]) {
    const s = this.scale * this.ratio;
    const at = [Math.round((left + x) * s), Math.round((top + y) * s)];
    return [...at, Math.round((left + x + width) * s) - at[0], Math.round((top + y + height) * s) - at[1]];
  }

  // `marked` is {seats: [{node, gpuMask}], victims}; `other` is the side to compare with. Either may be missing.
  draw(marked, other) {
    const { context, tape, recording } = this, { scene, first } = tape;
    const colour = colours();
    const paint = Object.fromEntries(["page", "server", "socket", "numa_node", "label", "ink", "dot", "dot-edge"].map((n) => [n, colour(n)]));
    const uses = scene.uses.map((_, i) => colour(`use-${i}`));
    context.fillStyle = paint.page;
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.font = `${Math.max(7, 7.5 * this.scale) * this.ratio}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    this.drawLeaves(colour("leaf"), paint.label);
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
      this.drawGangs(node, tile, origin, colour);
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

  drawLeaves(fill, label) {
    const { context, tape } = this;
    this.made.frames.forEach((frame, i) => {
      const { name, block } = tape.scene.leaves[i], [x, y] = this.place(frame, [tape.scene.leaf_edge, 5, 0, 0]);
      context.fillStyle = fill;
      context.fillRect(...this.place([0, 0], frame));
      context.fillStyle = label;
      context.fillText(`${name}, ${block}`, x, y);
    });
  }

  // An edge around the GPUs of gangs, and their numbers beside that of the server.
  drawGangs(node, tile, origin, colour) {
    const { context, tape, recording } = this, begin = tape.first[node], held = new Map();
    if (!tape.members.size) return;
    tile.gpus.forEach((box, gpu) => {
      const gang = tape.gangOf(recording.pods[begin + gpu]);
      if (gang >= 0) held.set(gang, [...(held.get(gang) ?? []), box]);
    });
    let [right, y] = this.place(origin, [tape.scene.tile_width - 3, 5, 0, 0]);
    context.textAlign = "right";
    for (const [gang, boxes] of held) {
      const number = `G${gang}`;
      context.fillStyle = colour(`gang-${gang % tape.scene.gang_colours}`);
      context.fillText(number, right, y);
      right -= context.measureText(`${number} `).width;
      for (const [left, top, width, height] of boxes) {
        context.fillRect(...this.place(origin, [left - 2, top - 2, width + 4, height + 4]));
      }
    }
    context.textAlign = "left";
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

  drawChoice({ seats, victims }, paint) {
    const { context, tape, recording } = this, { scene, first } = tape;
    let origin;
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
    for (const { node, gpuMask } of seats) {
      origin = this.origin(node);
      scene.tiles[scene.node_model[node]].gpus.forEach((box, gpu) => { if ((gpuMask >> gpu) & 1) frame(box, 0.5, 2); });
      frame([0, 0, scene.tile_width, scene.tile_height], -0.75, 1.5);
    }
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
    const node = this.made.origins.findIndex(
      ([left, top]) => x >= left && x < left + scene.tile_width && y >= top && y < top + scene.tile_height);
    if (node < 0) return -1;
    const [left, top] = this.origin(node);
    const gpu = scene.tiles[scene.node_model[node]].gpus.findIndex(
      ([bx, by, w, h]) => x - left >= bx - 1 && x - left < bx + w + 1 && y - top >= by - 1 && y - top < by + h + 1);
    return gpu < 0 ? -1 : first[node] + gpu;
  }
}

// Where the servers stand: in a grid, or in the frames of leaves; as `flextopo.envs.arrangement` does it.

function folded(servers, columns) {
  return Math.ceil(servers / Math.ceil(servers / columns));
}

function arrangeGrid(scene, numNodes, columns) {
  const wide = scene.tile_width + scene.gap, high = scene.tile_height + scene.gap;
  const origins = [];
  for (let node = 0; node < numNodes; node++) {
    origins.push([(node % columns) * wide, Math.floor(node / columns) * high]);
  }
  return { origins, frames: [], width: columns * wide - scene.gap, height: Math.ceil(numNodes / columns) * high - scene.gap };
}

function arrange(scene, numNodes, columns) {
  const { gap, leaves, leaf_label: label, leaf_edge: edge } = scene;
  if (!leaves.length) return arrangeGrid(scene, numNodes, columns);
  const wide = scene.tile_width + gap, high = scene.tile_height + gap;
  const inside = folded(Math.max(...leaves.map(({ nodes }) => nodes.length)), columns);
  const across = Math.max(1, Math.floor(columns / inside));
  const frameWidth = 2 * edge + inside * wide - gap;
  const origins = [], frames = [];
  let x = 0, top = 0, highest = 0;
  leaves.forEach(({ block, nodes }, i) => {
    const newBlock = i > 0 && block !== leaves[i - 1].block;
    if (x === across || newBlock) {
      top += highest + gap + (newBlock ? scene.block_gap : 0);
      x = highest = 0;
    }
    const left = x * (frameWidth + gap);
    nodes.forEach((node, at) => {
      origins[node] = [left + edge + (at % inside) * wide, top + label + Math.floor(at / inside) * high];
    });
    const height = label + Math.ceil(nodes.length / inside) * high - gap + edge;
    frames.push([left, top, frameWidth, height]);
    highest = Math.max(highest, height);
    x++;
  });
  return { origins, frames, width: Math.max(...frames.map(([left]) => left)) + frameWidth, height: top + highest };
}

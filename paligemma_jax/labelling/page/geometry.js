// Boxes, polygons and masks in pixels of an image; nothing of the page is known here.

export const HANDLES = ['nw', 'n', 'ne', 'e', 'se', 's', 'sw', 'w'];

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const round = value => Math.round(value * 100) / 100;

/* Returns [x0, y0, x1, y1] of two corners, inside the image. */
export function boxOf(x, y, otherX, otherY, width, height) {
  const [left, right] = [x, otherX].map(v => clamp(v, 0, width)).sort((a, b) => a - b);
  const [top, bottom] = [y, otherY].map(v => clamp(v, 0, height)).sort((a, b) => a - b);
  return [left, top, right, bottom].map(round);
}

/* Returns a box moved as far as the image allows. */
export function moveBox([x0, y0, x1, y1], dx, dy, width, height) {
  const right = clamp(dx, -x0, width - x1);
  const down = clamp(dy, -y0, height - y1);
  return [x0 + right, y0 + down, x1 + right, y1 + down].map(round);
}

/* Returns a box one of whose handles is dragged to a point; it may turn over. */
export function resizeBox([x0, y0, x1, y1], handle, x, y, width, height) {
  const left = handle.includes('w') ? x : x0;
  const right = handle.includes('e') ? x : x1;
  const top = handle.includes('n') ? y : y0;
  const bottom = handle.includes('s') ? y : y1;
  return boxOf(left, top, right, bottom, width, height);
}

export function handlePoints([x0, y0, x1, y1]) {
  const x = (x0 + x1) / 2;
  const y = (y0 + y1) / 2;
  return {nw: [x0, y0], n: [x, y0], ne: [x1, y0], e: [x1, y],
    se: [x1, y1], s: [x, y1], sw: [x0, y1], w: [x0, y]};
}

/* Returns the name of the handle at a point, or null. */
export function handleAt(box, x, y, reach) {
  const points = handlePoints(box);
  const near = HANDLES.map(name => [name, Math.hypot(points[name][0] - x, points[name][1] - y)])
    .filter(([, distance]) => distance <= reach)
    .sort((a, b) => a[1] - b[1]);
  return near.length ? near[0][0] : null;
}

export const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);

/* Returns the number of the smallest object whose box holds a point, or -1. */
export function objectAt(objects, x, y, reach = 0) {
  let best = -1;
  objects.forEach(({box: [x0, y0, x1, y1]}, number) => {
    const inside = x >= x0 - reach && x <= x1 + reach && y >= y0 - reach && y <= y1 + reach;
    if (inside && (best < 0 || area(objects[number].box) < area(objects[best].box))) best = number;
  });
  return best;
}

export function intersectionOverUnion(one, other) {
  const width = Math.min(one[2], other[2]) - Math.max(one[0], other[0]);
  const height = Math.min(one[3], other[3]) - Math.max(one[1], other[1]);
  const shared = Math.max(width, 0) * Math.max(height, 0);
  return shared / (area(one) + area(other) - shared);
}

/* Polygons are flat lists: [x, y, x, y, ...]. */

export function polygonBox(polygons) {
  const flat = polygons.flat();
  const xs = flat.filter((_, place) => place % 2 === 0);
  const ys = flat.filter((_, place) => place % 2 === 1);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

export const boxPolygon = ([x0, y0, x1, y1]) => [x0, y0, x1, y0, x1, y1, x0, y1];

/* Returns [polygon, vertex] at a point, or null. */
export function vertexAt(polygons, x, y, reach) {
  let best = null;
  let least = reach;
  polygons.forEach((flat, polygon) => {
    for (let vertex = 0; vertex < flat.length / 2; vertex++) {
      const distance = Math.hypot(flat[2 * vertex] - x, flat[2 * vertex + 1] - y);
      if (distance <= least) [best, least] = [[polygon, vertex], distance];
    }
  });
  return best;
}

export function moveVertex(polygons, [polygon, vertex], x, y, width, height) {
  return polygons.map((flat, number) => number !== polygon ? flat : flat.map((value, place) => {
    if (place === 2 * vertex) return round(clamp(x, 0, width));
    if (place === 2 * vertex + 1) return round(clamp(y, 0, height));
    return value;
  }));
}

/* Returns polygons without a vertex; null where the last polygon would have fewer than three. */
export function removeVertex(polygons, [polygon, vertex]) {
  const cut = polygons.map((flat, number) => number !== polygon ? flat
    : flat.filter((_, place) => Math.floor(place / 2) !== vertex));
  const kept = cut.filter(flat => flat.length >= 6);
  return kept.length ? kept : null;
}

/* Returns polygons with a new vertex on the edge that is nearest to a point, within reach. */
export function insertVertex(polygons, x, y, reach) {
  let best = null;
  let least = reach;
  polygons.forEach((flat, polygon) => {
    const count = flat.length / 2;
    for (let vertex = 0; vertex < count; vertex++) {
      const next = (vertex + 1) % count;
      const [ax, ay, bx, by] = [flat[2 * vertex], flat[2 * vertex + 1], flat[2 * next], flat[2 * next + 1]];
      const length = (bx - ax) ** 2 + (by - ay) ** 2 || 1;
      const share = clamp(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0, 1);
      const distance = Math.hypot(ax + share * (bx - ax) - x, ay + share * (by - ay) - y);
      if (distance <= least) [best, least] = [[polygon, vertex], distance];
    }
  });
  if (!best) return null;
  return polygons.map((flat, number) => number !== best[0] ? flat
    : [...flat.slice(0, 2 * best[1] + 2), round(x), round(y), ...flat.slice(2 * best[1] + 2)]);
}

export const movePolygons = (polygons, dx, dy) => polygons.map(flat =>
  flat.map((value, place) => round(value + (place % 2 ? dy : dx))));

/* Returns an object moved; its outline goes with it, a mask too. */
export function moveObject(object, dx, dy, width, height) {
  const box = moveBox(object.box, dx, dy, width, height);
  const moved = {...object, box};
  const [right, down] = [box[0] - object.box[0], box[1] - object.box[1]];
  if (Array.isArray(object.segmentation))
    moved.segmentation = movePolygons(object.segmentation, right, down);
  else if (object.segmentation)
    moved.segmentation = encodeMask(
      shiftMask(decodeMask(object.segmentation), Math.round(right), Math.round(down), width, height),
      width, height);
  return moved;
}

/* Masks: Uint8Array of width * height, row by row; at rest COCO's compressed run lengths, which go
   down the columns: {size: [height, width], counts}. */

export function encodeMask(mask, width, height) {
  const runs = [];
  let value = 0;
  let run = 0;
  for (let x = 0; x < width; x++)
    for (let y = 0; y < height; y++) {
      const here = mask[y * width + x] ? 1 : 0;
      if (here !== value) {
        runs.push(run);
        [value, run] = [here, 0];
      }
      run++;
    }
  runs.push(run);
  let counts = '';
  runs.forEach((number, place) => {
    let rest = place > 2 ? number - runs[place - 2] : number;
    let more = true;
    while (more) {
      let bits = rest & 31;
      rest >>= 5;
      more = bits & 16 ? rest !== -1 : rest !== 0;
      if (more) bits |= 32;
      counts += String.fromCharCode(bits + 48);
    }
  });
  return {size: [height, width], counts};
}

export function decodeMask({size: [height, width], counts}) {
  const mask = new Uint8Array(width * height);
  const runs = [];
  let place = 0;
  while (place < counts.length) {
    let number = 0;
    let shift = 0;
    let bits = 32;
    while (bits & 32) {
      bits = counts.charCodeAt(place++) - 48;
      number |= (bits & 31) << shift;
      shift += 5;
      if (!(bits & 32) && bits & 16) number |= -1 << shift;
    }
    runs.push(runs.length > 2 ? number + runs[runs.length - 2] : number);
  }
  let at = 0;
  runs.forEach((run, number) => {
    if (number % 2)
      for (let pixel = at; pixel < at + run; pixel++)
        mask[(pixel % height) * width + Math.floor(pixel / height)] = 1;
    at += run;
  });
  return mask;
}

/* Paints, or clears, a round stroke from one point to another. */
export function paintStroke(mask, width, height, from, to, radius, value) {
  const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / Math.max(radius / 2, 1)));
  for (let step = 0; step <= steps; step++) {
    const x = from[0] + (to[0] - from[0]) * step / steps;
    const y = from[1] + (to[1] - from[1]) * step / steps;
    const top = Math.max(0, Math.floor(y - radius));
    const bottom = Math.min(height - 1, Math.ceil(y + radius));
    for (let row = top; row <= bottom; row++) {
      const half = radius ** 2 - (row + 0.5 - y) ** 2;
      if (half < 0) continue;
      const left = Math.max(0, Math.ceil(x - Math.sqrt(half) - 0.5));
      const right = Math.min(width - 1, Math.floor(x + Math.sqrt(half) - 0.5));
      if (right >= left) mask.fill(value, row * width + left, row * width + right + 1);
    }
  }
}

/* Returns the box around a mask, or null where it is empty. */
export function maskBox(mask, width, height) {
  let [x0, y0, x1, y1] = [width, height, -1, -1];
  for (let y = 0; y < height; y++) {
    const row = mask.subarray(y * width, (y + 1) * width);
    const first = row.indexOf(1);
    if (first < 0) continue;
    if (y0 === height) y0 = y;
    y1 = y;
    x0 = Math.min(x0, first);
    x1 = Math.max(x1, row.lastIndexOf(1));
  }
  return x1 < 0 ? null : [x0, y0, x1 + 1, y1 + 1];
}

export function shiftMask(mask, dx, dy, width, height) {
  const moved = new Uint8Array(width * height);
  for (let y = Math.max(0, dy); y < Math.min(height, height + dy); y++)
    for (let x = Math.max(0, dx); x < Math.min(width, width + dx); x++)
      moved[y * width + x] = mask[(y - dy) * width + x - dx];
  return moved;
}

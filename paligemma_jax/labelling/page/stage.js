// The picture with what is drawn on it: zoom and pan, and the tools of the pointer.

import * as geometry from './geometry.js';

const SVG = 'http://www.w3.org/2000/svg';
const COLORS = ['#e6194b', '#3cb44b', '#4363d8', '#f58231', '#911eb4', '#0aa5a5',
  '#f032e6', '#8a9a00', '#b8651b', '#008f5a', '#c2185b', '#5d6dff'];
const REACH = {mouse: 7, pen: 9, touch: 18}; // px on the screen around what is meant
const LEAST = 3; // px on the screen that a box has at least
export const TOOLS = ['select', 'box', 'polygon', 'brush'];

export const colorOf = (label, classes) =>
  COLORS[(Math.max(classes.indexOf(label), 0)) % COLORS.length];

function draw(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

export class Stage {
  /* hooks: change(objects, selected), select(number), accept(number), newObject() -> {label}. */
  constructor(element, hooks) {
    this.element = element;
    this.hooks = hooks;
    this.sheet = element.querySelector('.sheet');
    this.canvas = element.querySelector('canvas');
    this.svg = element.querySelector('svg');
    this.tool = 'box';
    this.erases = false;
    this.radius = 12;
    this.classes = [];
    this.clear();
    this.pointers = new Map();
    for (const [name, handler] of Object.entries({
      pointerdown: 'down', pointermove: 'move', pointerup: 'up', pointercancel: 'up',
      wheel: 'wheel', dblclick: 'double', contextmenu: 'menu',
    })) element.addEventListener(name, event => this[handler](event), {passive: false});
    new ResizeObserver(() => this.fit()).observe(element);
  }

  clear() {
    Object.assign(this, {objects: [], proposed: [], selected: -1, points: [], width: 0, height: 0,
      action: null, isReadOnly: false, decoded: new Map()});
  }

  /* Shows an image, which is decoded already if it was fetched ahead. */
  show(image, width, height) {
    this.clear();
    this.image?.remove();
    this.image = image;
    image.className = 'picture';
    image.draggable = false;
    image.alt = '';
    this.sheet.prepend(image);
    if (width) this.resize(width, height);
    else if (image.naturalWidth) this.resize(image.naturalWidth, image.naturalHeight);
    else image.addEventListener('load', () => {
      if (this.image === image && !this.width) this.resize(image.naturalWidth, image.naturalHeight);
    }, {once: true});
  }

  resize(width, height) {
    Object.assign(this, {width, height});
    this.sheet.style.width = `${width}px`;
    this.sheet.style.height = `${height}px`;
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.canvas.width = width;
    this.canvas.height = height;
    this.fit();
  }

  fit() {
    const {clientWidth, clientHeight} = this.element;
    if (!this.width || !clientWidth) return;
    this.scale = Math.min(clientWidth / this.width, clientHeight / this.height) * 0.98;
    this.left = (clientWidth - this.width * this.scale) / 2;
    this.top = (clientHeight - this.height * this.scale) / 2;
    this.place();
  }

  place() {
    this.sheet.style.transform = `translate(${this.left}px, ${this.top}px) scale(${this.scale})`;
    this.svg.style.setProperty('--px', `${1 / this.scale}px`);
    this.redraw();
  }

  zoom(factor, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2) {
    const scale = Math.min(Math.max(this.scale * factor, 0.02), 60);
    this.left = x - (x - this.left) * scale / this.scale;
    this.top = y - (y - this.top) * scale / this.scale;
    this.scale = scale;
    this.place();
  }

  pan(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.place();
  }

  setObjects(objects, proposed = []) {
    Object.assign(this, {objects, proposed});
    this.selected = Math.min(this.selected, objects.length - 1);
    this.redraw();
  }

  select(number) {
    this.selected = number;
    this.hooks.select(number);
    this.redraw();
  }

  /* What happens with the pointer. */

  point(event) {
    const frame = this.element.getBoundingClientRect();
    return [(event.clientX - frame.left - this.left) / this.scale,
      (event.clientY - frame.top - this.top) / this.scale];
  }

  down(event) {
    if (!this.width || event.target.closest('button')) return;
    this.element.focus({preventScroll: true});
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2) {
      this.cancel();
      this.action = {kind: 'pinch', spread: this.spread()};
      return;
    }
    if (this.pointers.size > 2) return;
    const [x, y] = this.point(event);
    if (event.button === 1 || this.isPanning) this.action = {kind: 'pan', at: event};
    else if (this.isReadOnly) this.action = {kind: 'pan', at: event};
    else if (this.tool === 'polygon') this.addPoint(x, y, event);
    else if (this.tool === 'brush') this.beginStroke(x, y, event);
    else this.beginBox(x, y, event);
    event.preventDefault();
  }

  beginBox(x, y, event) {
    const reach = REACH[event.pointerType || 'mouse'] / this.scale;
    const chosen = this.objects[this.selected];
    if (chosen) {
      const outline = Array.isArray(chosen.segmentation) ? chosen.segmentation : null;
      const vertex = outline && geometry.vertexAt(outline, x, y, reach);
      if (vertex && event.altKey) return this.cutVertex(vertex);
      if (vertex) return this.begin('vertex', {vertex});
      const handle = !chosen.segmentation && geometry.handleAt(chosen.box, x, y, reach);
      if (handle) return this.begin('resize', {handle, box: chosen.box});
    }
    const hit = geometry.objectAt(this.objects, x, y, this.tool === 'select' ? reach / 2 : 0);
    if (this.tool === 'select' || (hit >= 0 && hit === this.selected)) {
      const proposal = hit < 0 ? geometry.objectAt(this.proposed, x, y) : -1;
      if (proposal >= 0) return this.hooks.accept(proposal);
      if (hit !== this.selected) this.select(hit);
      if (hit >= 0) return this.begin('shift', {from: [x, y], object: this.objects[hit]});
      this.action = {kind: 'pan', at: event};
      return;
    }
    this.begin('draw', {from: [x, y]});
  }

  begin(kind, values) {
    this.action = {kind, before: this.objects, ...values};
  }

  beginStroke(x, y, event) {
    const chosen = this.objects[this.selected];
    const value = this.erases || event.altKey || event.button === 2 ? 0 : 1;
    const kept = chosen && chosen.segmentation && this.maskOf(chosen);
    const mask = kept ? kept.slice() : new Uint8Array(this.width * this.height);
    this.begin('stroke', {mask, value, last: [x, y], isNew: !kept});
    if (!kept && !value) this.action = null;
    else this.stroke(x, y);
  }

  move(event) {
    if (!this.pointers.has(event.pointerId) && event.pointerType !== 'mouse') return;
    const before = this.pointers.get(event.pointerId);
    if (before) this.pointers.set(event.pointerId, event);
    const {action} = this;
    const [x, y] = this.point(event);
    this.cursor = [x, y];
    if (!action) {
      if (this.tool === 'brush' || this.points.length) this.redraw();
      return;
    }
    const {width, height} = this;
    if (action.kind === 'pinch') this.pinch(action);
    else if (action.kind === 'pan') {
      this.pan(event.clientX - action.at.clientX, event.clientY - action.at.clientY);
      action.at = event;
    } else if (action.kind === 'draw') {
      action.box = geometry.boxOf(...action.from, x, y, width, height);
      this.redraw();
    } else if (action.kind === 'resize')
      this.replace({box: geometry.resizeBox(action.box, action.handle, x, y, width, height)});
    else if (action.kind === 'shift') {
      action.moved = [x - action.from[0], y - action.from[1]];
      this.replace(geometry.moveObject(action.object, ...action.moved, width, height));
    } else if (action.kind === 'vertex') {
      const moved = geometry.moveVertex(this.objects[this.selected].segmentation, action.vertex, x, y, width, height);
      this.replace({segmentation: moved, box: geometry.polygonBox(moved)});
    } else if (action.kind === 'stroke') this.stroke(x, y);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    const {action} = this;
    if (!action || (action.kind === 'pinch' && this.pointers.size)) return;
    this.action = null;
    const smallest = LEAST / this.scale;
    if (event.type === 'pointercancel') this.setObjects(action.before ?? this.objects, this.proposed);
    else if (action.kind === 'draw') {
      const box = action.box ?? [0, 0, 0, 0];
      if (box[2] - box[0] >= smallest && box[3] - box[1] >= smallest) this.add({box});
      else this.pick(...action.from);
    } else if (action.kind === 'stroke') this.endStroke(action);
    else if (['resize', 'shift', 'vertex'].includes(action.kind) && this.objects !== action.before) {
      const isSmall = action.kind === 'shift' && Math.hypot(...action.moved) < smallest;
      if (isSmall) this.setObjects(action.before, this.proposed);
      else this.hooks.change(this.objects, this.selected);
    }
    this.redraw();
  }

  /* A click that draws nothing: what is there is chosen, or accepted. */
  pick(x, y) {
    const hit = geometry.objectAt(this.objects, x, y);
    const proposal = hit < 0 ? geometry.objectAt(this.proposed, x, y) : -1;
    if (proposal >= 0) this.hooks.accept(proposal);
    else this.select(hit);
  }

  add(object) {
    const made = {...this.hooks.newObject(), ...object};
    if (!made.label) return;
    this.selected = this.objects.length;
    this.hooks.change([...this.objects, made], this.selected);
  }

  replace(values) {
    this.objects = this.objects.map((object, number) =>
      number === this.selected ? {...object, ...values} : object);
    this.redraw();
  }

  addPoint(x, y, event) {
    const reach = REACH[event.pointerType || 'mouse'] / this.scale;
    const chosen = this.objects[this.selected];
    if (!this.points.length && chosen && Array.isArray(chosen.segmentation)) {
      const vertex = geometry.vertexAt(chosen.segmentation, x, y, reach);
      if (vertex && event.altKey) return this.cutVertex(vertex);
      if (vertex) return this.begin('vertex', {vertex});
    }
    const [first] = this.points;
    if (first && this.points.length > 2 && Math.hypot(first[0] - x, first[1] - y) <= reach)
      return this.closePolygon();
    const inside = [Math.min(Math.max(x, 0), this.width), Math.min(Math.max(y, 0), this.height)];
    this.points.push(inside.map(value => Math.round(value * 100) / 100));
    this.redraw();
  }

  closePolygon() {
    const flat = this.points.flat();
    this.points = [];
    const box = flat.length >= 6 && geometry.polygonBox([flat]);
    if (box && box[2] > box[0] && box[3] > box[1]) this.add({box, segmentation: [flat]});
    this.redraw();
  }

  cutVertex(vertex) {
    const kept = geometry.removeVertex(this.objects[this.selected].segmentation, vertex);
    if (!kept) return;
    this.replace({segmentation: kept, box: geometry.polygonBox(kept)});
    this.hooks.change(this.objects, this.selected);
  }

  double(event) {
    const [x, y] = this.point(event);
    if (this.points.length > 2) {
      this.points.pop(); // the second click of the two
      this.closePolygon();
      return;
    }
    const chosen = this.objects[this.selected];
    if (!chosen || !Array.isArray(chosen.segmentation)) return;
    const more = geometry.insertVertex(chosen.segmentation, x, y, 2 * REACH.mouse / this.scale);
    if (!more) return;
    this.replace({segmentation: more});
    this.hooks.change(this.objects, this.selected);
  }

  stroke(x, y) {
    const {action} = this;
    geometry.paintStroke(action.mask, this.width, this.height, action.last, [x, y], this.radius, action.value);
    action.last = [x, y];
    this.redraw();
  }

  endStroke({mask, isNew, before}) {
    const box = geometry.maskBox(mask, this.width, this.height);
    if (!box) {
      if (!isNew) this.hooks.change(before.filter((_, number) => number !== this.selected), -1);
      return;
    }
    const segmentation = geometry.encodeMask(mask, this.width, this.height);
    if (isNew) this.add({box, segmentation});
    else {
      this.replace({box, segmentation});
      this.hooks.change(this.objects, this.selected);
    }
  }

  /* Takes back what is begun: points of a polygon, one by one, or a drag. Returns whether it did. */
  back() {
    if (this.points.length) this.points.pop();
    else if (this.action) this.cancel();
    else return false;
    this.redraw();
    return true;
  }

  cancel() {
    const before = this.action?.before;
    this.action = null;
    this.points = [];
    if (before) this.objects = before;
    this.redraw();
  }

  wheel(event) {
    event.preventDefault();
    const frame = this.element.getBoundingClientRect();
    this.zoom(Math.exp(-event.deltaY / 400), event.clientX - frame.left, event.clientY - frame.top);
  }

  menu(event) { event.preventDefault(); }

  spread() {
    const [one, other] = [...this.pointers.values()];
    const frame = this.element.getBoundingClientRect();
    return {
      x: (one.clientX + other.clientX) / 2 - frame.left,
      y: (one.clientY + other.clientY) / 2 - frame.top,
      size: Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY),
    };
  }

  pinch(action) {
    if (this.pointers.size < 2) return;
    const {x, y, size} = this.spread();
    this.left += x - action.spread.x;
    this.top += y - action.spread.y;
    this.zoom(size / Math.max(action.spread.size, 1), x, y);
    action.spread = {x, y, size};
  }

  /* What is seen. */

  maskOf(object) {
    const {segmentation} = object;
    if (Array.isArray(segmentation)) return this.fill(segmentation);
    if (!this.decoded.has(segmentation.counts))
      this.decoded.set(segmentation.counts, geometry.decodeMask(segmentation));
    return this.decoded.get(segmentation.counts);
  }

  /* Returns polygons as a mask. */
  fill(polygons) {
    const canvas = new OffscreenCanvas(this.width, this.height);
    const context = canvas.getContext('2d', {willReadFrequently: true});
    context.beginPath();
    for (const flat of polygons) {
      for (let place = 0; place < flat.length; place += 2) context.lineTo(flat[place], flat[place + 1]);
      context.closePath();
    }
    context.fill();
    const {data} = context.getImageData(0, 0, this.width, this.height);
    return Uint8Array.from({length: this.width * this.height}, (_, pixel) => data[4 * pixel + 3] > 127 ? 1 : 0);
  }

  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.drawNow();
    });
  }

  drawNow() {
    if (!this.width) return;
    this.svg.replaceChildren();
    const masks = [];
    this.proposed.forEach(object => this.drawObject(object, 'proposed', masks));
    this.objects.forEach((object, number) =>
      this.drawObject(object, number === this.selected ? 'selected' : 'own', masks, number));
    if (this.action?.kind === 'draw' && this.action.box)
      this.drawBox(this.action.box, 'drawn', '#fff');
    if (this.action?.kind === 'stroke') masks.push([this.action.mask, '#ffffff']);
    this.drawPoints();
    if (this.tool === 'brush' && this.cursor)
      draw('circle', {cx: this.cursor[0], cy: this.cursor[1], r: this.radius, class: 'cursor'}, this.svg);
    this.drawMasks(masks);
  }

  drawObject(object, kind, masks, number) {
    const color = colorOf(object.label, this.classes);
    const {segmentation, box} = object;
    const isStroked = this.action?.kind === 'stroke' && number === this.selected && !this.action.isNew;
    if (Array.isArray(segmentation)) {
      for (const flat of segmentation)
        draw('polygon', {points: flat.join(' '), class: kind, stroke: color, fill: color}, this.svg);
    } else if (segmentation && !isStroked) masks.push([this.maskOf(object), color]);
    if (!Array.isArray(segmentation)) this.drawBox(box, kind, color);
    const size = 13 / this.scale;
    const score = object.score === undefined ? '' : ` ${object.score.toFixed(2)}`;
    const text = draw('text', {x: box[0] + 2 / this.scale, y: Math.max(box[1] - 3 / this.scale, size),
      'font-size': size, fill: color}, this.svg);
    text.textContent = `${object.label}${score}`;
    if (kind === 'selected') this.drawHandles(object);
  }

  drawBox([x0, y0, x1, y1], kind, color) {
    draw('rect', {x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: kind, stroke: color}, this.svg);
  }

  drawHandles({box, segmentation}) {
    if (segmentation && !Array.isArray(segmentation)) return;
    const points = segmentation
      ? segmentation.flatMap(flat => flat.flatMap((value, place) => place % 2 ? [] : [[value, flat[place + 1]]]))
      : Object.values(geometry.handlePoints(box));
    const side = 8 / this.scale;
    for (const [x, y] of points)
      draw('rect', {x: x - side / 2, y: y - side / 2, width: side, height: side, class: 'handle'}, this.svg);
  }

  drawPoints() {
    if (!this.points.length) return;
    const line = this.cursor ? [...this.points, this.cursor] : this.points;
    draw('polyline', {points: line.flat().join(' '), class: 'drawn'}, this.svg);
    for (const [x, y] of this.points)
      draw('circle', {cx: x, cy: y, r: 4 / this.scale, class: 'handle'}, this.svg);
  }

  drawMasks(masks) {
    const context = this.canvas.getContext('2d');
    context.clearRect(0, 0, this.width, this.height);
    if (!masks.length) return;
    const shown = context.createImageData(this.width, this.height);
    const pixels = new Uint32Array(shown.data.buffer);
    for (const [mask, color] of masks) {
      const [red, green, blue] = [1, 3, 5].map(place => parseInt(color.slice(place, place + 2), 16));
      const value = (0x90 << 24 | blue << 16 | green << 8 | red) >>> 0;
      for (let pixel = 0; pixel < mask.length; pixel++) if (mask[pixel]) pixels[pixel] = value;
    }
    context.putImageData(shown, 0, 0);
  }
}

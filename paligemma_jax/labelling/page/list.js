// The list of images: as many lines as fit are there, however many images there are.

import {BEGUN, DONE, LABELS, NAME, STATUS, TEXT} from './answers.js';

const HEIGHT = 28; // px of a line

export class ItemList {
  constructor(element, onChosen) {
    this.element = element;
    this.tall = element.querySelector('.tall');
    this.onChosen = onChosen;
    this.items = [];
    this.place = -1;
    element.addEventListener('scroll', () => this.draw());
    new ResizeObserver(() => this.draw()).observe(element);
  }

  /* Shows items, and the one at a place; scrolls to it. */
  show(items, place, isShown = true) {
    const hasMoved = place !== this.place;
    Object.assign(this, {items, place});
    this.tall.style.height = `${items.length * HEIGHT}px`;
    const {clientHeight, scrollTop} = this.element;
    const top = place * HEIGHT;
    if (isShown && hasMoved && place >= 0 && (top < scrollTop || top + HEIGHT > scrollTop + clientHeight))
      this.element.scrollTop = top - clientHeight / 2;
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.element.scrollTop / HEIGHT) - 4);
    const count = Math.ceil(this.element.clientHeight / HEIGHT) + 8;
    const lines = this.items.slice(first, first + count).map((item, number) => this.line(item, first + number));
    this.element.replaceChildren(this.tall, ...lines);
  }

  line(item, place) {
    const made = document.createElement('button');
    made.type = 'button';
    made.tabIndex = -1;
    made.style.top = `${place * HEIGHT}px`;
    made.className = {[BEGUN]: 'begun', [DONE]: 'done'}[item[STATUS]] ?? '';
    made.setAttribute('aria-current', place === this.place);
    const more = document.createElement('small');
    more.textContent = item[LABELS].length ? item[LABELS].join(', ') : item[TEXT];
    made.append(item[NAME], more);
    made.onclick = () => this.onChosen(place);
    return made;
  }
}

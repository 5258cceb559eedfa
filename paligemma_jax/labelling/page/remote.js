// What the page asks the server: JSON in and out, one save of an image at a time, images ahead.

const AHEAD = 24; // images that are kept decoded

export class Failure extends Error {
  constructor(status, body) {
    super(body.error ?? `the server says ${status}`);
    this.status = status;
    this.items = body.items ?? [];
  }
}

async function answer(response) {
  const body = await response.json();
  if (!response.ok) throw new Failure(response.status, body);
  return body;
}

export async function get(path, query = {}) {
  return answer(await fetch(`/api/${path}?${new URLSearchParams(query)}`));
}

export async function post(path, body) {
  const headers = {'Content-Type': 'application/json'};
  return answer(await fetch(`/api/${path}`, {method: 'POST', headers, body: JSON.stringify(body)}));
}

export async function upload(file) {
  const query = new URLSearchParams({name: file.name});
  return answer(await fetch(`/api/upload?${query}`, {method: 'POST', body: file}));
}

export const imageAddress = (key, number = 0) => `/image?${new URLSearchParams({key, n: number})}`;
export const smallAddress = key => `/image?${new URLSearchParams({key, small: 1})}`;

/* Saves, in the order of the changes: of an image that changes while it is saved, the last state. */
export class Saver {
  constructor(onSaved, onFailed, onIdle) {
    Object.assign(this, {onSaved, onFailed, onIdle});
    this.waiting = new Map();
    this.revisions = new Map();
    this.running = null;
  }

  get isIdle() { return !this.running && this.waiting.size === 0; }

  isPending(key) { return this.waiting.has(key) || this.current === key; }

  /* Notes the revision of what is looked at: what others save since is a conflict, not lost. */
  know(key, revision) {
    if (!this.isPending(key)) this.revisions.set(key, revision);
  }

  add(body) {
    this.waiting.delete(body.key);
    this.waiting.set(body.key, body);
    this.running ??= this.run();
    return this.running;
  }

  async run() {
    await null;
    while (this.waiting.size) {
      const [[key, body]] = this.waiting;
      this.waiting.delete(key);
      this.current = key;
      try {
        const saved = await post('save', {...body, revision: this.revisions.get(key) ?? body.revision});
        this.revisions.set(key, saved.summary[4]);
        this.current = null;
        this.onSaved(saved, !this.waiting.has(key));
      } catch (failure) {
        this.current = null;
        this.waiting.delete(key);
        this.onFailed(failure, body);
      }
    }
    this.running = null;
    this.onIdle();
  }

  async idle() { while (this.running) await this.running; }
}

/* Items and decoded images, fetched before they are looked at. */
export class Ahead {
  constructor() {
    this.items = new Map();
    this.images = new Map();
  }

  item(key) {
    if (!this.items.has(key)) {
      const asked = get('item', {key});
      asked.catch(() => this.items.delete(key));
      this.keep(this.items, key, asked);
    }
    return this.items.get(key);
  }

  image(key, number = 0) {
    const address = imageAddress(key, number);
    if (!this.images.has(address)) {
      const image = new Image();
      image.src = address;
      image.decode().catch(() => this.images.delete(address));
      this.keep(this.images, address, image);
    }
    return this.images.get(address);
  }

  keep(map, key, value) {
    map.set(key, value);
    if (map.size > AHEAD) map.delete(map.keys().next().value);
  }

  forget(key) { this.items.delete(key); }

  put(key, value) {
    this.items.delete(key);
    this.keep(this.items, key, Promise.resolve(value));
  }

  fetch(keys) {
    for (const key of keys) {
      this.item(key).catch(() => {});
      this.image(key);
    }
  }
}

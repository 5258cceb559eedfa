const cards = [...document.querySelectorAll('.card')];
const grid = document.querySelector('.cards');
const search = document.querySelector('#search');
let wanted = 'all';
function choose() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const card of cards) {
    const fits = wanted === 'all' || card.dataset.flags.split(' ').includes(wanted);
    const text = words.length ? card.textContent.toLowerCase() : '';
    card.hidden = !fits || !words.every(word => text.includes(word));
    count += !card.hidden;
  }
  document.querySelector('#count').textContent = `${count} shown`;
}
for (const button of document.querySelectorAll('button[data-filter]')) {
  button.onclick = () => {
    for (const other of document.querySelectorAll('button[data-filter]'))
      other.setAttribute('aria-pressed', other === button);
    wanted = button.dataset.filter;
    choose();
  };
}
search.oninput = choose;
document.querySelector('#sort').onchange = event => {
  const [key, sign] = event.target.value.split(':');
  const value = card => card.dataset[key] === '' ? Infinity : sign * card.dataset[key];
  cards.sort((a, b) => value(a) - value(b) || a.dataset.index - b.dataset.index);
  grid.append(...cards);
};
for (const box of document.querySelectorAll('input[data-hides]'))
  box.onchange = () => grid.classList.toggle(box.dataset.hides, !box.checked);

// What is pressed and chosen on a page that html.py writes. `k3d` draws, `page` says what there is.
function voxelpoolControls(k3d, page) {
  const known = k3d.getWorld().ObjectsListJson;
  const hidden = new Set();
  const NO_CLASS = 0x4a5264;
  let frame = 0, color = page.color, player = null;
  const shown = new Map();  // id -> whether it is drawn
  for (const id of page.ground) shown.set(id, true);
  page.frames.forEach((one, row) => {
    for (const layer of one.layers) for (const id of layer.ids) shown.set(id, row === 0);
  });

  function change(id, changes) {
    Object.assign(known[id], changes);
    return k3d.reload(known[id], changes);
  }

  function make(tag, parent, properties = {}) {
    const element = Object.assign(document.createElement(tag), properties);
    parent.appendChild(element);
    return element;
  }

  make('style', document.head, {textContent: `
    body, html { background: #101218; }
    .vp { position: absolute; z-index: 30; color: #e2e6ee; font: 13px/1.4 system-ui, sans-serif;
          background: rgba(16, 18, 24, .82); border-radius: 6px; padding: 8px 10px; }
    .vp button, .vp select { font: inherit; color: inherit; background: #262b36;
          border: 1px solid #3e4452; border-radius: 4px; padding: 2px 8px; cursor: pointer; }
    .vp button[aria-pressed=false] { opacity: .45; text-decoration: line-through; }
    .vp button:focus-visible, .vp select:focus-visible { outline: 2px solid #8ab4ff; }
    #vp-words { position: absolute; inset: 0; overflow: hidden; pointer-events: none; z-index: 20; }
    #vp-words span { position: absolute; left: 0; top: 0; white-space: nowrap; font: 12px system-ui,
          sans-serif; text-shadow: 0 0 3px #101218, 0 0 3px #101218, 0 0 3px #101218; }
    #vp-legend { left: 10px; top: 10px; max-width: 300px; }
    #vp-legend h1 { font-size: 17px; margin: 0 0 6px; font-weight: 600; overflow-wrap: anywhere; }
    #vp-layers button { display: flex; align-items: center; gap: 8px; width: 100%; margin: 2px 0;
          text-align: left; }
    #vp-layers i { width: 14px; height: 14px; border: 3px solid transparent; flex: none;
          box-sizing: border-box; }
    .vp-scale { display: flex; align-items: center; gap: 6px; margin-top: 6px; flex-wrap: wrap;
          color: #969eae; }
    .vp-scale canvas { height: 10px; width: 110px; }
    #vp-views { right: 10px; top: 10px; display: flex; gap: 6px; }
    #vp-frames { left: 10px; bottom: 10px; display: flex; gap: 8px;
          align-items: center; white-space: nowrap; }
    #vp-frames input { width: 22vw; }
    #vp-image { right: 10px; bottom: 10px; padding: 4px; line-height: 0; max-width: 46vw; }
    #vp-image img { max-width: 100%; border-radius: 4px; }
    #vp-help { left: 50%; top: 50%; transform: translate(-50%, -50%); padding: 16px 24px;
          display: none; }
    #vp-help td:first-child { padding-right: 18px; font-weight: 600; }`});

  const words = make('div', document.body, {id: 'vp-words'});
  const legend = make('div', document.body, {id: 'vp-legend', className: 'vp'});
  const title = make('h1', legend);
  const choice = make('label', legend, {textContent: 'points by '});
  const select = make('select', choice, {id: 'vp-color'});
  const layers = make('div', legend, {id: 'vp-layers'});
  const scale = make('div', legend, {className: 'vp-scale', id: 'vp-scale'});
  const counts = make('div', legend, {className: 'vp-scale', id: 'vp-counts'});

  const views = make('div', document.body, {id: 'vp-views', className: 'vp'});
  for (const [name, text] of [['bev', 'above'], ['driver', 'driver'], ['oblique', 'oblique']]) {
    const button = make('button', views, {textContent: text});
    button.dataset.view = name;
    button.onclick = () => { k3d.setCamera(page.views[name]); k3d.render(); };
  }
  const asked = make('button', views, {textContent: '?', title: 'keys'});
  asked.onclick = () => help.style.display = help.style.display === 'block' ? 'none' : 'block';

  const image = make('div', document.body, {id: 'vp-image', className: 'vp'});
  const picture = make('img', image, {alt: 'camera image with points and boxes'});

  const help = make('div', document.body, {id: 'vp-help', className: 'vp'});
  const table = make('table', help);
  for (const [key, text] of [
    ['n, \u2192', 'next frame'], ['p, \u2190', 'previous frame'], ['space', 'play, stop'],
    ['o', 'points'], ['v', 'voxels'], ['b', 'boxes'], ['t', 'classes and scores'],
    ['c', 'next colours'], ['i', 'camera image'], ['h', 'these keys'],
    ['drag', 'turn; with fewer points and voxels meanwhile where drawing is slow'],
    ['right drag', 'move'], ['wheel', 'closer, farther'],
  ]) {
    const line = make('tr', table);
    make('td', line, {textContent: key});
    make('td', line, {textContent: text});
  }

  let slider = null, number = null, play = null;
  if (page.frames.length > 1) {
    const bar = make('div', document.body, {id: 'vp-frames', className: 'vp'});
    make('button', bar, {textContent: '\u25c0', title: 'previous'}).onclick = () => go(frame - 1);
    play = make('button', bar, {textContent: '\u25b6\u25b6', title: 'play'});
    play.onclick = togglePlay;
    make('button', bar, {textContent: '\u25b6', title: 'next'}).onclick = () => go(frame + 1);
    slider = make('input', bar, {id: 'vp-slider', type: 'range', min: 0,
                                 max: page.frames.length - 1, value: 0});
    slider.oninput = () => go(Number(slider.value));
    number = make('span', bar);
  }

  function togglePlay() {
    if (player === null) {
      player = setInterval(() => go(frame + 1), 500);
    } else {
      clearInterval(player);
      player = null;
    }
    play.setAttribute('aria-label', player === null ? 'play' : 'stop');
  }

  function unpacked(text) {
    return fflate.unzlibSync(_base64ToArrayBuffer(text));
  }

  function gradient(parent, low, high, name, unit, backward) {
    make('span', parent, {textContent: `${name} ${low}`});
    const bar = make('canvas', parent, {width: 128, height: 1});
    const pen = bar.getContext('2d');
    for (let column = 0; column < 128; column++) {
      const shade = page.colormap[backward ? 255 - 2 * column : 2 * column + 1];
      pen.fillStyle = '#' + shade.toString(16).padStart(6, '0');
      pen.fillRect(column, 0, 1, 1);
    }
    make('span', parent, {textContent: `${high}${unit}`});
  }

  function paint() {
    const one = page.frames[frame];
    const coloring = one.colorings[color];
    scale.replaceChildren();
    counts.replaceChildren();
    if (one.counts) gradient(counts, one.counts[0], one.counts[1], 'points per voxel', '', false);
    if (!coloring) return;
    const points = one.layers.find(layer => layer.key === 'points').ids[0];
    const shades = unpacked(coloring.values);
    let palette = page.colormap;
    if (coloring.classes) {
      palette = new Array(256).fill(NO_CLASS);
      coloring.classes.forEach(([name, css, packed], row) => {
        palette[row] = packed;
        make('i', scale).style.cssText = `width:12px;height:12px;background:${css}`;
        make('span', scale, {textContent: name});
      });
    } else {
      gradient(scale, coloring.low, coloring.high, color === 'distance' ? 'to a box' : color,
               color === 'reflectance' ? '' : ' m', color === 'distance');
    }
    if (one.painted !== color) {
      const colors = Uint32Array.from(shades, shade => palette[shade]);
      change(points, {colors: {data: colors, shape: [colors.length]}});
      one.painted = color;
    }
  }

  function update() {
    const one = page.frames[frame];
    page.frames.forEach((other, row) => {
      for (const layer of other.layers) {
        const drawn = row === frame && !hidden.has(layer.key);
        for (const id of layer.ids) {
          if (shown.get(id) !== drawn) {
            shown.set(id, drawn);
            change(id, {visible: drawn});
          }
        }
      }
    });
    const grounded = !hidden.has('ground');
    for (const id of page.ground) {
      if (shown.get(id) !== grounded) {
        shown.set(id, grounded);
        change(id, {visible: grounded});
      }
    }
    title.textContent = document.title = one.title || 'voxelpool';
    select.replaceChildren();
    for (const name of Object.keys(one.colorings)) make('option', select, {textContent: name});
    if (!(color in one.colorings)) color = Object.keys(one.colorings)[0] || color;
    select.value = color;
    choice.style.display = Object.keys(one.colorings).length ? '' : 'none';
    layers.replaceChildren();
    const rows = [...one.layers, {key: 'ground', text: 'rings, sensor, axes', color: ''}];
    if (one.image) rows.push({key: 'image', text: 'camera image', color: ''});
    for (const layer of rows) {
      const button = make('button', layers);
      button.dataset.layer = layer.key;
      button.setAttribute('aria-pressed', String(!hidden.has(layer.key)));
      make('i', button).style[layer.key.startsWith('mark') ? 'background' : 'borderColor'] =
        layer.color || 'transparent';
      make('span', button, {textContent: layer.text});
      button.onclick = () => toggle([layer.key]);
    }
    image.style.display = one.image && !hidden.has('image') ? '' : 'none';
    if (one.image) picture.src = one.image;
    if (slider) {
      slider.value = frame;
      number.textContent = `${frame + 1} of ${page.frames.length}`;
    }
    paint();
    write();
    k3d.render();
  }

  // Words stand above what they belong to, wherever it is turned.
  let placed = [], seenFrom = null;

  function write() {
    words.replaceChildren();
    placed = [];
    seenFrom = null;
    for (const word of [...page.ring_texts, ...page.frames[frame].texts]) {
      if (hidden.has(word.key) || (word.key !== 'ground' && hidden.has('texts'))) continue;
      const element = make('span', words, {textContent: word.text});
      element.style.color = word.color;
      placed.push([element, word.at, word.raised ? '-200%' : '-100%']);
    }
  }

  function times(matrix, [x, y, z, w]) {
    return [0, 1, 2, 3].map(row => matrix[row] * x + matrix[row + 4] * y + matrix[row + 8] * z
                                   + matrix[row + 12] * w);
  }

  // A machine that is slow to draw draws a part of the points and voxels while the view moves. They
  // lie in an order whose beginning is spread over all of them.
  const SLOW_MS = 50, FAST_MS = 25, STILL_MS = 250, FAST_FRAMES = 8;
  let share = 1, fast = 0, moved = null, before = null;

  function draw(part) {
    const things = k3d.getWorld().ObjectsById;
    for (const layer of page.frames.flatMap(one => one.layers)) {
      if (!layer.thinned) continue;
      for (const id of layer.ids) {
        const geometry = things[id] && things[id].geometry;
        if (!geometry) continue;
        const rows = (geometry.index || geometry.attributes.position).count / layer.thinned;
        geometry.setDrawRange(0, part === 1 ? Infinity : layer.thinned * Math.ceil(rows * part));
      }
    }
    document.body.dataset.drawn = part;
  }

  function pace(time, moves) {
    const took = moved === null ? 0 : time - before;
    if (took > SLOW_MS) {
      share = Math.max(page.least_share, share * 2 ** Math.floor(Math.log2(SLOW_MS / took)));
      fast = 0;
    } else if (moves && took > 0 && took < FAST_MS) {
      fast += 1;
      if (fast === FAST_FRAMES) [share, fast] = [Math.min(1, 2 * share), 0];
    }
    before = time;
    if (moves) {
      moved = time;
      draw(share);
    } else if (moved !== null && time - moved > STILL_MS) {
      moved = null;
      draw(1);
      k3d.render(true);  // after the one that may be under way
    }
  }

  function place(time) {
    requestAnimationFrame(place);
    const camera = k3d.getWorld().camera;
    const [width, height] = [words.clientWidth, words.clientHeight];
    const view = camera.matrixWorldInverse.elements, lens = camera.projectionMatrix.elements;
    const now = [...view, ...lens, width, height];
    // K3D works them out anew at every picture, with noise in the last digits.
    const same = seenFrom !== null
      && now.every((value, row) => Math.abs(value - seenFrom[row]) < 1e-6);
    pace(time, !same && seenFrom !== null);
    if (same) return;
    seenFrom = now;
    for (const [element, at, lift] of placed) {
      const [x, y, , w] = times(lens, times(view, [...at, 1]));
      element.style.display = w > 0.1 ? '' : 'none';
      const column = (x / w + 1) / 2 * width, row = (1 - y / w) / 2 * height;
      element.style.transform = `translate(${column}px, ${row}px) translate(-50%, ${lift})`;
    }
  }

  function toggle(keys) {
    const any = keys.some(key => !hidden.has(key));
    for (const key of keys) any ? hidden.add(key) : hidden.delete(key);
    update();
  }

  function go(row) {
    frame = (row + page.frames.length) % page.frames.length;
    update();
  }

  function keysOf(start) {
    return page.frames[frame].layers.map(layer => layer.key).filter(key => key.startsWith(start));
  }

  select.onchange = () => { color = select.value; update(); select.blur(); };
  const pressed = {
    n: () => go(frame + 1), ArrowRight: () => go(frame + 1),
    p: () => go(frame - 1), ArrowLeft: () => go(frame - 1),
    ' ': () => page.frames.length > 1 && togglePlay(),
    o: () => toggle(['points']), v: () => toggle(['voxels']), t: () => toggle(['texts']),
    b: () => toggle(keysOf('boxes')), i: () => toggle(['image']), h: () => asked.onclick(),
    c: () => {
      const names = Object.keys(page.frames[frame].colorings);
      if (names.length) color = names[(names.indexOf(color) + 1) % names.length];
      update();
    },
  };
  document.addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === 'INPUT') return;
    if (event.key in pressed) {
      event.preventDefault();
      pressed[event.key]();
    }
  });
  page.frames[0].painted = color;  // as the file has them
  document.body.dataset.drawn = share;
  update();
  requestAnimationFrame(place);
  document.body.dataset.ready = 'yes';
}

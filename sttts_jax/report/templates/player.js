// Steps through the frames of a page. Without it the page still shows every frame in its strip.
(function () {
  "use strict";
  const film = JSON.parse(document.getElementById("film").textContent);
  const find = (id) => document.getElementById(id);
  const canvas = find("screen"), slider = find("scrub"), player = document.querySelector(".frames"), pen = canvas.getContext("2d");
  const bars = Array.from(document.querySelectorAll(".timeline a"));
  const shots = Array.from(document.querySelectorAll(".strip li"));
  const edge = (pixels, cells, i) => Math.round(i * pixels / cells);
  const pictures = new Map();
  let at = 0, timer = 0;

  function picture(source) {
    if (!pictures.has(source)) {
      const image = new Image();
      pictures.set(source, new Promise((done) => { image.onload = () => done(image); }));
      image.src = source;
    }
    return pictures.get(source);
  }

  function isKept(frame, cell) {
    return (film.masks[frame][cell >> 3] >> (7 - (cell & 7))) & 1;
  }

  function drawMask(width, height) {
    const dropped = new Path2D(), grid = new Path2D();
    for (let row = 0; row < film.rows; row++) {
      for (let column = 0; column < film.columns; column++) {
        const x = edge(width, film.columns, column), y = edge(height, film.rows, row);
        const w = edge(width, film.columns, column + 1) - x, h = edge(height, film.rows, row + 1) - y;
        if (!isKept(at, row * film.columns + column)) dropped.rect(x, y, w, h);
        grid.rect(x + 0.5, y + 0.5, w, h);
      }
    }
    pen.globalCompositeOperation = "saturation";
    pen.fillStyle = "#808080";
    pen.fill(dropped);
    pen.globalCompositeOperation = "source-over";
    pen.fillStyle = "rgba(16, 18, 22, 0.74)";
    pen.fill(dropped);
    pen.strokeStyle = "rgba(0, 0, 0, 0.18)";
    pen.stroke(grid);
  }

  function drawHeat(image, width, height) {
    pen.globalCompositeOperation = "saturation";
    pen.fillStyle = "#808080";
    pen.fillRect(0, 0, width, height);
    pen.globalCompositeOperation = "source-over";
    pen.globalAlpha = 0.72;
    pen.imageSmoothingEnabled = false;
    pen.drawImage(image, 0, 0, width, height);
    pen.globalAlpha = 1;
  }

  async function draw() {
    const wanted = at, mode = document.querySelector("input[name=mode]:checked").value;
    const frame = await picture(film.images[wanted]);
    const heat = mode === "scores" ? await picture(film.heat[wanted]) : null;
    if (wanted !== at) return; // a later frame was asked for meanwhile
    const width = Math.max(1, Math.round(canvas.clientWidth * Math.min(window.devicePixelRatio || 1, 2)));
    const height = Math.max(1, Math.round(width / film.aspect));
    canvas.width = width;
    canvas.height = height;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(frame, 0, 0, width, height);
    if (mode === "kept") drawMask(width, height);
    if (heat) drawHeat(heat, width, height);
  }

  function show(index) {
    bars[at].classList.remove("on");
    shots[at].classList.remove("on");
    at = index;
    bars[at].classList.add("on");
    shots[at].classList.add("on");
    slider.value = at;
    find("share").textContent = Math.round(film.shares[at] * 100) + " %";
    find("when").textContent = film.times[at].toFixed(2) + " s, frame " + (at + 1) + " of " + film.images.length;
    draw();
  }

  function play(on) {
    window.clearInterval(timer);
    player.classList.toggle("playing", on);
    // About three seconds for a short clip, ten for a long one: the pace shows change, not the speed of the video.
    if (on) timer = window.setInterval(() => show((at + 1) % film.images.length), Math.max(90, 4000 / film.images.length));
  }

  film.masks = film.keep.map((text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
  document.documentElement.classList.add("js");
  canvas.style.aspectRatio = film.aspect;
  slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
  find("play").addEventListener("click", () => play(!player.classList.contains("playing")));
  document.querySelectorAll("input[name=mode]").forEach((input) => input.addEventListener("change", draw));
  bars.forEach((bar, index) => {
    bar.addEventListener("click", (event) => { event.preventDefault(); play(false); show(index); });
    bar.addEventListener("pointerenter", () => { if (!player.classList.contains("playing")) show(index); });
  });
  shots.forEach((shot, index) => shot.addEventListener("click", () => {
    play(false);
    show(index);
    player.scrollIntoView({ behavior: "smooth", block: "start" });
  }));
  // Space plays wherever nothing else wants it. The slider is the one tab stop of all frames; arrow keys move it.
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button") || film.images.length < 2) return;
    event.preventDefault();
    if (!event.repeat) find("play").click();
  });
  window.addEventListener("resize", draw);
  show(film.start);
})();

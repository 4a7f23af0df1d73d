
"use strict";
(() => {
  const canvas = document.getElementById("canvas"), svg = document.getElementById("drawing"), scene = document.getElementById("scene");
  const details = document.getElementById("details"), search = document.getElementById("search"), found = document.getElementById("found");
  const nodes = [...scene.querySelectorAll(".node")], links = [...scene.querySelectorAll("[data-a]")];
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  svg.removeAttribute("viewBox");
  let at = { x: 0, y: 0, k: 1 };
  const show = () => scene.setAttribute("transform", `translate(${at.x} ${at.y}) scale(${at.k})`);
  const zoom = (factor, x, y) => {
    const k = Math.min(6, Math.max(0.02, at.k * factor));
    at = { x: x - (x - at.x) * k / at.k, y: y - (y - at.y) * k / at.k, k };
    show();
  };
  const middle = () => [canvas.clientWidth / 2, canvas.clientHeight / 2];
  const fit = (whole) => {
    const wide = canvas.clientWidth / width;
    // At first as wide as the window, but so that names can be read.
    const k = whole ? Math.min(wide, canvas.clientHeight / height) : Math.min(1.2, Math.max(wide, 0.35));
    at = { k, x: Math.max(0, (canvas.clientWidth - width * k) / 2), y: whole ? Math.max(0, (canvas.clientHeight - height * k) / 2) : 0 };
    show();
  };
  const box = (node) => node.querySelector("rect").getBBox();
  const centre = (node) => {
    const b = box(node), k = Math.max(at.k, 0.8), [x, y] = middle();
    at = { k, x: x - (b.x + b.width / 2) * k, y: y - (b.y + b.height / 2) * k };
    show();
  };

  const pick = (node) => {
    nodes.concat(links).forEach((e) => e.classList.remove("on", "picked"));
    scene.classList.toggle("chosen", !!node);
    details.hidden = !node;
    if (!node) return;
    node.classList.add("on", "picked");
    const others = [];
    for (const link of links.filter((l) => l.dataset.a === node.id || l.dataset.b === node.id)) {
      const other = document.getElementById(link.dataset.a === node.id ? link.dataset.b : link.dataset.a);
      link.classList.add("on");
      other.classList.add("on");
      if (link.classList.contains("pair") && !others.includes(other)) others.push(other);
    }
    tell(node, others);
  };
  const line = (kind, text) => {
    const element = document.createElement(kind);
    element.textContent = text;
    details.append(element);
    return element;
  };
  const tell = (node, others) => {
    details.replaceChildren();
    line("h2", node.dataset.name);
    node.dataset.about.split("\n").forEach((text) => line("p", text));
    if (others.length) line("p", node.id.startsWith("t") ? "takes from" : "gives to").className = "soft";
    others.forEach((other) => line("button", other.dataset.name).addEventListener("click", () => { centre(other); pick(other); }));
  };

  // One pointer moves, two zoom; a pointer that hardly moved is a tap.
  const pointers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (e) => {
    if (!pointers.size) moved = 0;
    pointers.set(e.pointerId, [e.offsetX, e.offsetY]);
    pointers.start = e.target.closest(".node");
  });
  canvas.addEventListener("pointermove", (e) => {
    const last = pointers.get(e.pointerId);
    if (!last) return;
    const rect = canvas.getBoundingClientRect(), now = [e.clientX - rect.left, e.clientY - rect.top];
    const other = [...pointers].find(([id]) => id !== e.pointerId);
    if (other) {
      const gap = (p) => Math.hypot(p[0] - other[1][0], p[1] - other[1][1]) || 1;
      zoom(gap(now) / gap(last), (now[0] + other[1][0]) / 2, (now[1] + other[1][1]) / 2);
    } else {
      at.x += now[0] - last[0];
      at.y += now[1] - last[1];
      show();
    }
    moved += Math.hypot(now[0] - last[0], now[1] - last[1]);
    if (moved > 6 && !canvas.hasPointerCapture(e.pointerId)) canvas.setPointerCapture(e.pointerId);
    pointers.set(e.pointerId, now);
  });
  const up = (e) => {
    if (pointers.delete(e.pointerId) && e.type === "pointerup" && moved < 6 && !pointers.size) pick(pointers.start);
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("wheel", (e) => {
    e.preventDefault();
    const rect = canvas.getBoundingClientRect();
    zoom(Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : 0.0015)), e.clientX - rect.left, e.clientY - rect.top);
  }, { passive: false });
  document.getElementById("in").addEventListener("click", () => zoom(1.4, ...middle()));
  document.getElementById("out").addEventListener("click", () => zoom(1 / 1.4, ...middle()));
  document.getElementById("all").addEventListener("click", () => { pick(null); fit(true); });

  let hits = [], current = 0;
  const seek = (step) => {
    if (!hits.length) return;
    current = (current + step + hits.length) % hits.length;
    found.textContent = `${current + 1}/${hits.length}`;
    centre(hits[current]);
    pick(hits[current]);
  };
  search.addEventListener("input", () => {
    const text = search.value.trim().toLowerCase();
    nodes.forEach((node) => node.classList.remove("found"));
    // Vectors stand in what is said about their channel space.
    hits = text ? nodes.filter((n) => `${n.dataset.name}\n${n.dataset.about}`.toLowerCase().includes(text)) : [];
    hits.forEach((node) => node.classList.add("found"));
    found.textContent = text ? (hits.length ? "" : "none") : "";
    current = 0;
    if (hits.length) seek(0); else pick(null);
  });
  addEventListener("keydown", (e) => {
    if (e.target === search) {
      if (e.key === "Enter") seek(e.shiftKey ? -1 : 1);
      if (e.key === "Escape") { search.value = ""; search.dispatchEvent(new Event("input")); search.blur(); }
    } else if (e.key === "/") { e.preventDefault(); search.focus(); }
    else if (e.key === "Escape") pick(null);
    else if (e.key === "+") zoom(1.4, ...middle());
    else if (e.key === "-") zoom(1 / 1.4, ...middle());
    else if (e.key === "0") fit(true);
    else if (e.key === "Enter" && e.target.classList.contains("node")) pick(e.target);
  });
  addEventListener("resize", () => show());
  fit(false);
})();

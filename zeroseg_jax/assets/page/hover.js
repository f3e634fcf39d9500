// Names the region under the mouse: its word and score follow the pointer, and the other regions fade.
() => {
  const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const note = document.createElement("div");
  note.id = "under-mouse";
  note.style.cssText =
    "position: fixed; z-index: 1000; display: none; pointer-events: none; padding: 2px 8px; border-radius: 4px;" +
    "background: #191919; color: white; font-family: system-ui, sans-serif; font-size: 14px;";
  document.body.append(note);
  let current = null; // the entry of the legend whose region is under the mouse

  // Gradio fades the other regions while the mouse is over an entry of the legend
  const highlight = (entry) => {
    if (entry === current) return;
    current?.dispatchEvent(new MouseEvent("mouseout", { bubbles: true }));
    entry?.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
    current = entry;
  };

  const covers = (mask, x, y) => {
    pixel.clearRect(0, 0, 1, 1);
    pixel.drawImage(mask, -x, -y);
    return pixel.getImageData(0, 0, 1, 1).data[3] > 0;
  };

  document.addEventListener("mousemove", (event) => {
    const frame = event.target.closest?.("#labels .image-container");
    let entry = null;
    if (frame) {
      // the image is centred in its box, and may be smaller
      const image = frame.querySelector(".base-image");
      const box = image.getBoundingClientRect();
      const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
      const x = Math.floor((event.clientX - box.left - box.width / 2) / scale + image.naturalWidth / 2);
      const y = Math.floor((event.clientY - box.top - box.height / 2) / scale + image.naturalHeight / 2);
      const masks = [...frame.querySelectorAll(".mask")];
      const index = masks.findIndex((mask) => covers(mask, x, y));
      entry = document.querySelectorAll("#labels .legend-item")[index] ?? null;
    }
    highlight(entry);
    note.style.display = entry ? "block" : "none";
    note.textContent = entry?.textContent ?? "";
    note.style.left = `${event.clientX + 14}px`;
    note.style.top = `${event.clientY + 14}px`;
  });
};

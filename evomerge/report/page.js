// The page says all that it has to say without this: buttons that copy, labels under the pointer.
for (const block of document.querySelectorAll(".code")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const text = block.querySelector("pre").textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(block.querySelector("pre"));
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  block.classList.add("can-copy");
  block.append(button);
}

const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
for (const drawing of document.querySelectorAll(".plot > svg")) {
  const marks = [...drawing.querySelectorAll("[data-tip]")];
  drawing.addEventListener("pointermove", (event) => {
    let nearest = null, least = 24;
    for (const mark of marks) {
      const box = mark.getBoundingClientRect();
      const distance = Math.hypot(box.x + box.width / 2 - event.clientX,
                                  box.y + box.height / 2 - event.clientY);
      if (distance < least) [nearest, least] = [mark, distance];
    }
    tip.hidden = nearest === null;
    if (nearest === null) return;
    tip.textContent = nearest.dataset.tip;
    const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(event.pageX + 12, right))}px`;
    tip.style.top = `${event.pageY + 16}px`;
  });
  drawing.addEventListener("pointerleave", () => { tip.hidden = true; });
}

/* Sliders for those who do not see them: each has a name, and the words of its picture move with it. */
const named = (input) => {
  const picture = input.closest("figure.nbslider").querySelector("img");
  const first = input.getAttribute("aria-valuetext");
  const shown = picture.alt.endsWith(first) ? picture.alt.slice(0, -first.length) : `${picture.alt}: `;
  const label = input.closest("label")?.firstChild?.textContent.trim();
  input.setAttribute("aria-label", label || shown.replace(/[:\s]+$/, "") || "frame");
  input.addEventListener("input", () => {
    picture.alt = shown + input.getAttribute("aria-valuetext");
  });
};

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("figure.nbslider input").forEach(named);
  document.querySelectorAll("input:not([aria-label]):not([type=hidden])").forEach((input) => {
    if (!input.labels?.length) input.setAttribute("aria-label", input.placeholder || input.title || "open");
  });
});

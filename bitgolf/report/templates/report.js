// Touch and keyboard have no tooltips: show the surprisal of the token under the finger or pointer in words.
"use strict";
for (const passage of document.querySelectorAll(".passage")) {
  const note = document.getElementById(passage.dataset.note);
  const show = (event) => {
    const token = event.target.closest("[title]");
    if (token) note.textContent = "\u201c" + token.textContent.replace(/\s+/g, " ") + "\u201d: " + token.title;
  };
  passage.addEventListener("pointerover", show);
  passage.addEventListener("click", show);
}

"use strict";

// textual.js tells of itself by classes of the body only.
new MutationObserver(() => {
  const classes = document.body.classList;
  if (classes.contains("-closed")) {
    document.getElementById("again").focus();
  } else if (classes.contains("-first-byte")) {
    // Without this the first keys are lost until someone clicks into the terminal.
    document.querySelector(".xterm-helper-textarea")?.focus();
  }
}).observe(document.body, { attributes: true, attributeFilter: ["class"] });

document.getElementById("again").addEventListener("click", () => window.location.replace("/"));

"use strict";
// Without this script the page has all its text, tables, pictures and files. It adds: sorting,
// copying, enlarged pictures, and a switch between light and dark.
(() => {
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const button = (text, action, properties = {}) => {
    const element = make("button", { type: "button", ...properties }, text);
    element.addEventListener("click", action);
    return element;
  };

  // Light and dark. Some browsers have no storage for pages from files.
  const THEMES = ["auto", "light", "dark"];
  const stored = (value) => {
    try {
      if (value) localStorage.setItem("moco_d2-theme", value);
      return localStorage.getItem("moco_d2-theme");
    } catch {
      return null;
    }
  };
  const theme = button("", () => show(THEMES[(THEMES.indexOf(theme.value) + 1) % 3], true));
  const show = (value, keep = false) => {
    theme.value = value;
    theme.textContent = `Colors: ${value}`;
    document.documentElement.dataset.theme = value;
    if (keep) stored(value);
  };
  theme.id = "theme";
  show(THEMES.includes(stored()) ? stored() : "auto");
  document.querySelector("header").append(theme);

  // Copying. Some browsers have no clipboard for pages from files, so the text is selected there.
  const copied = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = make("textarea", { value: text, className: "offscreen" });
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  const copyButton = (textOf, title = "") => {
    const element = button("Copy", async () => {
      element.textContent = (await copied(textOf())) ? "Copied" : "Select the text to copy it";
      setTimeout(() => { element.textContent = "Copy"; }, 2000);
    }, { className: "copy", title });
    return make("div", { className: "copies" }, element);
  };
  const cellText = (cell) => cell.textContent.replaceAll("▲", "").replace(/\s+/g, " ").trim();
  const tableText = (table) =>
    [...table.rows].map((row) => [...row.cells].map(cellText).join("\t")).join("\n");
  for (const box of document.querySelectorAll(".table")) {
    const tables = [...box.querySelectorAll("table")];
    const text = () => tables.map(tableText).join("\n\n");
    box.append(copyButton(text, "Copy the cells, to paste them into a spreadsheet"));
  }
  for (const code of document.querySelectorAll("pre > code")) {
    code.before(copyButton(() => code.textContent));
  }

  // Sorting: first descending for numbers, then ascending, then as it was. A row of the paper stays
  // below its row, and empty cells stay at the end.
  const NUMBER = /^[<\s]*([-+−]?\d+(?:\.\d+)?)/;
  const valueOf = (cell, numbers) => {
    const text = cell ? cellText(cell) : "";
    if (!numbers) return text;
    const match = NUMBER.exec(text);
    return match ? Number(match[1].replace("−", "-")) : null;
  };
  for (const table of document.querySelectorAll(".table table")) {
    const body = table.tBodies[0];
    const groups = [];
    for (const row of body.rows) {
      if (row.classList.contains("beside") && groups.length) groups.at(-1).push(row);
      else groups.push([row]);
    }
    if (groups.length < 2) continue;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const texts = groups.map(([row]) => valueOf(row.cells[column], false));
      const numbers = texts.some((t) => NUMBER.test(t)) && texts.every((t) => !t || t === "–" || NUMBER.test(t));
      const order = numbers ? ["descending", "ascending", null] : ["ascending", "descending", null];
      const sort = button("", () => {
        const next = order[(order.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (next) head.setAttribute("aria-sort", next);
        const sign = next === "descending" ? -1 : 1;
        const keyed = groups.map((group) => [valueOf(group[0].cells[column], numbers), group]);
        if (next) {
          keyed.sort(([a], [b]) => {
            if (a === null || b === null) return (a === null) - (b === null);
            return sign * (numbers ? a - b : a.localeCompare(b, "en", { numeric: true }));
          });
        }
        body.append(...keyed.flatMap(([, group]) => group));
      }, { className: "sort" });
      sort.append(...head.childNodes);
      head.append(sort);
    });
  }

  // Enlarged pictures.
  const dialog = make("dialog");
  dialog.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  for (const image of document.querySelectorAll("figure img")) {
    const open = button("", () => {
      dialog.replaceChildren(button("Close", () => dialog.close()), image.cloneNode());
      dialog.setAttribute("aria-label", image.alt);
      dialog.showModal();
    }, { className: "enlarge", title: "Enlarge" });
    image.replaceWith(open);
    open.append(image);
  }

  // Files. Browsers refuse data: addresses of some megabytes, but no blob.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[download]");
    if (!link) return;
    event.preventDefault();
    const [type, content] = link.getAttribute("href").slice("data:".length).split(";base64,");
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const address = URL.createObjectURL(new Blob([bytes], { type }));
    make("a", { href: address, download: link.download }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  });
})();

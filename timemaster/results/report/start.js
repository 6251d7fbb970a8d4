// Draws the page from top to bottom.
"use strict";

drawHead();
drawCurves();
drawEvaluation();
drawBrowser();
